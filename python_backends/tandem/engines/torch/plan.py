"""A step of the scheduler as all ranks do it: which tokens to read, where their KV lies, which logits to show whole."""

from __future__ import annotations

from tandem.engines.torch.sampler import wants_whole_logits
from tandem.engines.torch.scheduler import Step
from tandem.engines.torch.sequence import Sequence
from tandem.messages import Row, StepPlan


def make_plan(step: Step, block_size: int) -> tuple[list[Sequence], StepPlan]:
    """The step's sequences in the order of the plan's rows, and the plan. Decode takes longer sequences first."""
    sequences = step.sequences if step.is_prefill else sorted(step.sequences, key=lambda s: -len(s.token_ids))
    rows = [
        Row(
            num_cached=s.num_cached,
            token_ids=s.token_ids[s.num_cached :],
            block_ids=s.block_ids[: -(-len(s.token_ids) // block_size)],
        )
        for s in sequences
    ]
    whole = [i for i, s in enumerate(sequences) if wants_whole_logits(s)]
    return sequences, StepPlan(is_prefill=step.is_prefill, rows=rows, whole_logits=whole)
