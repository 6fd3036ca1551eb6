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
        self._began = math.inf
        self._since: float | None = None
        """Up to when it is counted; None while nobody waits."""

    def begin(self, now: float) -> None:
        """Somebody waits, and nobody did before."""
        self._began = self._since = now

    def end(self) -> None:
        """Nobody waits any more."""
        self._since = None

    def served(self, tokens: int, now: float) -> None:
        """A request of so many tokens has left the queue."""
        if self._since is None or now <= self._began:
            return  # it did not have to wait
        seconds = now - self._since
        keep = math.exp(-seconds / MEMORY_S)
        self._seconds, self._tokens = keep * self._seconds + seconds, keep * self._tokens + tokens
        self._since = now

    def seconds_per_token(self, now: float) -> float | None:
        """The mean, a standstill until now included; None as long as too little was measured."""
        standstill = 0.0 if self._since is None else now - self._since
        if not self._tokens or self._seconds + standstill < LEAST_S:
            return None
        return (self._seconds + standstill) / self._tokens
