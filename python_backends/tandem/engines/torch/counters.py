"""What the engine has done since its start, as its load tells."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.engines.torch.scheduler import Step
from tandem.kv.pull import PullResult


@dataclass
class Counters:
    """Named as in ``Load``."""

    steps: int = 0
    step_seconds: float = 0.0
    prefill_steps: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    pulls: int = 0
    bytes_pulled: int = 0
    pull_seconds: float = 0.0

    def stepped(self, step: Step, seconds: float) -> None:
        """A step has run; its tokens are not taken in yet."""
        self.steps += 1
        self.step_seconds += seconds
        if step.is_prefill:
            self.prefill_steps += 1
            self.prefill_tokens += step.num_tokens
            self.prefill_seconds += seconds

    def pulled(self, result: PullResult) -> None:
        """A pull has ended well."""
        self.pulls += 1
        self.bytes_pulled += result.bytes_moved
        self.pull_seconds += result.seconds
