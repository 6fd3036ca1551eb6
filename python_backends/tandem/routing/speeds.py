"""How fast workers are, measured from the counters in their reports; nothing of it is configured."""

from __future__ import annotations

import math

from tandem.messages import Load

MEMORY_S = 30.0
"""Busy time after which a measurement counts 1/e."""


class Mean:
    """A mean over the last busy half minute or so."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0.0

    def add(self, total: float, count: float, seconds: float) -> None:
        """``count`` things came to ``total``; a worker was busy with them for ``seconds``."""
        if count <= 0 or seconds <= 0:
            return  # nothing was done, or the counters began anew
        keep = math.exp(-seconds / MEMORY_S)
        self._total = keep * self._total + total
        self._count = keep * self._count + count

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._count > 0

    @property
    def value(self) -> float:
        """The mean; ``known`` must hold."""
        return self._total / self._count


class Speeds:
    """What was measured of one worker, or of many together."""

    def __init__(self) -> None:
        self.prefill = Mean()
        """Seconds per uncached prompt token."""
        self.prefill_step = Mean()
        """Seconds per prefill step."""
        self.step = Mean()
        """Seconds per decode step."""
        self.batch = Mean()
        """Sequences in a decode step."""
        self.pull = Mean()
        """Seconds per byte of KV that comes from another worker, confirmation included."""

    def update(self, last: Load, load: Load) -> None:
        """Take in what a worker has done between two reports."""
        seconds = load.prefill_seconds - last.prefill_seconds
        self.prefill.add(seconds, load.prefill_tokens - last.prefill_tokens, seconds)
        self.prefill_step.add(seconds, load.prefill_steps - last.prefill_steps, seconds)
        seconds = (load.step_seconds - load.prefill_seconds) - (last.step_seconds - last.prefill_seconds)
        steps = (load.steps - load.prefill_steps) - (last.steps - last.prefill_steps)
        self.step.add(seconds, steps, seconds)
        self.batch.add(steps * max(1, load.running), steps, seconds)
        seconds = load.pull_seconds - last.pull_seconds
        self.pull.add(seconds, load.bytes_pulled - last.bytes_pulled, seconds)
