"""What an engine has done since its start, as its load tells."""

from __future__ import annotations

from dataclasses import dataclass


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
    tokens_borrowed: int = 0
    borrows_failed: int = 0
    preemptions: int = 0

    def stepped(self, seconds: float, prefill_tokens: int | None, count: int = 1) -> None:
        """``count`` steps have run. ``prefill_tokens``: one step that has read so many; None: decode steps."""
        self.steps += count
        self.step_seconds += seconds
        if prefill_tokens is not None:
            self.prefill_steps += 1
            self.prefill_tokens += prefill_tokens
            self.prefill_seconds += seconds

    def pulled(self, bytes_moved: int, seconds: float) -> None:
        """A pull has ended well."""
        self.pulls += 1
        self.bytes_pulled += bytes_moved
        self.pull_seconds += seconds

    def borrowed(self, tokens: int, bytes_moved: int, seconds: float) -> None:
        """The KV of so many tokens was borrowed."""
        self.pulled(bytes_moved, seconds)
        self.tokens_borrowed += tokens
