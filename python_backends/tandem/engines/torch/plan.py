"""A step of the scheduler as all ranks do it: which tokens to read, where their KV lies, which logits to show whole."""

from __future__ import annotations

from tandem.engines.torch.sampler import wants_whole_logits
from tandem.engines.torch.scheduler import Step
from tandem.engines.torch.sequence import Sequence
from tandem.messages import Row, StepPlan


def make_plan(step: Step, block_size: int) -> tuple[list[Sequence], StepPlan]:
    """The sequences that get a token, in the order of the plan's first rows, and the plan. Decode takes longer
    sequences first; in prefill a prompt that is read in part has the last row, and gets no token."""
    sequences = step.sequences if step.is_prefill else sorted(step.sequences, key=lambda s: -len(s.token_ids))
    ends = [len(s.token_ids) for s in sequences]
    ends[-1] -= step.left
    rows = [
        Row(
            num_cached=s.num_cached,
            token_ids=s.token_ids[s.num_cached : end],
            block_ids=s.block_ids[: -(-end // block_size)],
        )
        for s, end in zip(sequences, ends, strict=True)
    ]
    ready = sequences[:-1] if step.left else sequences
    whole = [i for i, s in enumerate(ready) if wants_whole_logits(s)]
    return ready, StepPlan(is_prefill=step.is_prefill, rows=rows, whole_logits=whole)
