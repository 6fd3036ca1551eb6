"""What a block in a cache is worth: how likely it is asked for again, by how long ago it was last used.

A cache that is full gives up a block for each new one, the least recently used. What has not been used for a time ``a``
is asked for again with the chance ``share / (1 + a / age)``: of all blocks that prompts have, which share is found, and
how old what is found is on average. Both are measured from the requests that this router places.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Chances = NDArray[np.float64]

KEEP = math.exp(-1 / 1000)
"""A request counts 1/e after a thousand others."""
REFRESH_S = 0.1
"""For so long the same chances are given out: ages change slowly."""


class Reuse:
    """Chances by worker, each known by its place, counted from 0 in the order of ``add``."""

    def __init__(self) -> None:
        self._edges: Chances = np.zeros(0, np.float64)
        """Last use of the block that a worker gave up last; -inf if it never had to."""
        self._chances: Chances = self._edges
        self._fresh_until = -math.inf
        self._blocks = self._found = self._found_s = 0.0

    def add(self) -> None:
        """A new worker."""
        self._edges = np.append(self._edges, -math.inf)
        self._fresh_until = -math.inf

    def begin(self, place: int) -> None:
        """A worker's cache is empty."""
        self._edges[place] = -math.inf
        self._fresh_until = -math.inf

    def evicted(self, place: int, used_at: float) -> None:
        """A worker has given up a block that was last used then."""
        if used_at > self._edges[place]:
            self._edges[place] = used_at

    def placed(self, blocks: int, found: int, age_s: float) -> None:
        """A prompt of so many blocks was given to a worker that holds ``found`` of them, last used ``age_s`` ago."""
        self._blocks = KEEP * self._blocks + blocks
        self._found = KEEP * self._found + found
        self._found_s = KEEP * self._found_s + found * age_s

    def chances(self, now: float) -> Chances:
        """For each worker, how likely the next block that it gives up would be asked for again; 0 while nothing has to
        go. Shape [workers], not to be written to."""
        if not self._fresh_until - REFRESH_S <= now < self._fresh_until:
            self._fresh_until = now + REFRESH_S
            if self._found_s > 0.0:
                share, age_s = self._found / self._blocks, self._found_s / self._found
                self._chances = share / (1.0 + np.maximum(now - self._edges, 0.0) / age_s)
            else:
                self._chances = np.zeros(len(self._edges), np.float64)
        return self._chances
