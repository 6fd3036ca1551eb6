"""A step on its way: when it ends. On a simulated clock, several decode steps may go as one."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.engines.sim.timing import Timing, prefill_pairs, step_s
from tandem.engines.torch.scheduler import Step
from tandem.messages import Prefill

LONGEST_RUN = 64
"""Decode steps that go as one."""


@dataclass
class RunningStep:
    """A step, or ``count`` decode steps of the same sequences one after the other, each with one more token of context
    for each sequence."""

    step: Step
    began: float
    first_s: float
    """What the first one takes."""
    growth_s: float = 0.0
    """How much longer each takes than the one before."""
    count: int = 1

    @property
    def ends_at(self) -> float:
        """When the last one ends."""
        return self._end_of(self.count)

    def cut(self, now: float) -> None:
        """Let no step begin after ``now``: somebody waits for the batch to change."""
        while self.count > 1 and self._end_of(self.count - 1) >= now:
            self.count -= 1

    def _end_of(self, count: int) -> float:
        return self.began + count * self.first_s + self.growth_s * count * (count - 1) / 2


def begin(step: Step, timing: Timing, now: float, longest_run: int) -> RunningStep:
    """Begin a step at ``now``. Up to ``longest_run`` decode steps go as one, where no answer ends before the last."""
    if step.is_prefill:
        *whole, last = step.sequences
        pairs = sum(prefill_pairs(s.num_cached, s.num_uncached) for s in whole)
        pairs += prefill_pairs(last.num_cached, last.num_uncached - step.left)
        return RunningStep(step, now, step_s(timing, step.num_tokens, pairs, 0))
    batch = len(step.sequences)
    first_s = step_s(timing, batch, 0, sum(s.num_cached for s in step.sequences))
    count = min(longest_run, *(s.work.stopping.max_tokens - s.num_output for s in step.sequences))
    if any(s.work.stopping.stop_token_ids or isinstance(s.work, Prefill) for s in step.sequences):
        count = 1  # any token may be the last
    return RunningStep(step, now, first_s, batch * timing.context_s, count)
