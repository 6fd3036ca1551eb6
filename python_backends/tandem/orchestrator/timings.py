"""How long the parts of a request have taken so far: what an error for lack of time tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

Part = Literal["waiting", "queue", "prefill", "transfer", "decode"]
"""waiting: for workers, and for the prompt to become tokens; queue: in a worker, before it reads the prompt."""


class Timings:
    """A stopwatch that is always in one part. What goes elsewhere begins a part anew; its times add up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds that never run backwards."""
        self._clock = clock
        self.started = clock()
        self._part: Part = "waiting"
        self._since = self.started
        self.seconds: dict[Part, float] = {}
        """Of the parts that have ended."""

    def enter(self, part: Part) -> None:
        """End the present part, and begin this one."""
        now = self._clock()
        self._add(self._part, now - self._since)
        self._part, self._since = part, now

    def was_queued(self, seconds: float) -> None:
        """Of the prefill under way, so much was the wait in the worker's queue."""
        self._add("queue", seconds)
        self._add("prefill", -seconds)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.started

    def __str__(self) -> str:
        """``waiting 0.01 s, queue 1.20 s, prefill 0.31 s, decode 2.44 s``: all parts so far, the present one last."""
        seconds = dict(self.seconds)
        seconds[self._part] = seconds.pop(self._part, 0.0) + self._clock() - self._since
        return ", ".join(f"{part} {spent:.2f} s" for part, spent in seconds.items())

    def _add(self, part: Part, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
