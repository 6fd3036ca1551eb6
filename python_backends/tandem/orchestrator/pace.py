"""How fast a queue moves, measured while anybody waits in it."""

from __future__ import annotations

import math

MEMORY_S = 10.0
"""After so much time with somebody waiting, a measurement counts 1/e."""
LEAST_S = 0.2
"""Less says nothing."""


class Pace:
    """Seconds per token that leaves the queue for the workers."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0
        self._began: float | None = None
        """Since when somebody waits; None while nobody does."""
        self._first: float | None = None
        """When the first one left since then. What went before had begun before anybody waited, and says too little."""
        self._since = 0.0
        """Up to when it is counted."""

    def begin(self, now: float) -> None:
        """Somebody waits, and nobody did before."""
        self._began, self._first = now, None

    def end(self) -> None:
        """Nobody waits any more."""
        self._began = None

    def served(self, tokens: int, now: float) -> None:
        """A request of so many tokens has left the queue."""
        if self._first is None:
            self._first = self._since = now
        if now <= self._first:
            return
        seconds = now - self._since
        keep = math.exp(-seconds / MEMORY_S)
        self._seconds, self._tokens = keep * self._seconds + seconds, keep * self._tokens + tokens
        self._since = now

    @property
    def seconds_per_token(self) -> float | None:
        """The mean; None as long as too little was measured."""
        return self._seconds / self._tokens if self._tokens and self._seconds >= LEAST_S else None

    def standstill_s(self, now: float) -> float:
        """For how long nobody has left the queue, though somebody waits."""
        if self._began is None:
            return 0.0
        return now - (self._began if self._first is None else self._since)
