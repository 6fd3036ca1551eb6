"""Whose KV gives way when no block is free, how much room has to be left before another one may start, and who goes on
again.

A sequence has blocks for its tokens alone, and takes the next one when it has come so far. Where there is none, the
sequence of the lowest priority, among those the last to arrive, gives up its own, and is computed anew later. So the
first always goes on, and with it, in the end, everybody.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from tandem.engines.torch.sequence import Sequence

AHEAD_TOKENS = 64
"""A sequence starts only where all, itself included, would have blocks for so many tokens more, or to the answer's end
if that comes before. So between two times that one has to give way, the others write as many steps, which take longer
than to compute a prompt of some thousand tokens anew; and short answers never give way."""


def rank(sequence: Sequence) -> tuple[int, int]:
    """The least goes first, and gives way last."""
    return sequence.work.priority, sequence.number


def reserve(sequences: Iterable[Sequence]) -> int:
    """Blocks that are to be left for what these will write next."""
    return sum(max(0, s.blocks_for(AHEAD_TOKENS) - len(s.block_ids)) for s in sequences)


def find_last(holders: list[Sequence], pulling: Iterable[Sequence], wanting: Sequence) -> Sequence | None:
    """Who of ``holders`` gives way, so that ``wanting``, one of them, gets a block: maybe ``wanting`` itself. None
    where it had better wait: it is the only one, or one that goes after it is ``pulling``, and gives way as soon as it
    holds its KV."""
    last = max(holders, key=rank)
    if last is not wanting:
        return last
    lower = any(rank(other) > rank(wanting) for other in pulling)
    return None if lower or len(holders) == 1 else wanting


class PreemptedQueue:
    """Those who gave way, the first of them first."""

    def __init__(self) -> None:
        self._queue: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        """Put one back, before all that come after it."""
        insort(self._queue, sequence, key=rank)

    def remove(self, sequence: Sequence) -> None:
        """Take one out, if it is here."""
        if sequence in self._queue:
            self._queue.remove(sequence)

    def before(self, waiting: Sequence | None) -> Sequence | None:
        """Who goes on before ``waiting``, the first of those who have not started: None where it has a higher priority
        than all here."""
        if not self._queue:
            return None
        first = self._queue[0]
        return None if waiting is not None and waiting.work.priority < first.work.priority else first

    @property
    def num_tokens(self) -> int:
        """That have to be read anew."""
        return sum(s.num_uncached for s in self._queue)
