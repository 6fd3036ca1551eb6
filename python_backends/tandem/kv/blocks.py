"""Which KV blocks are free. Block ids name places in one contiguous allocation: id i starts at ``i * block_bytes``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from tandem.errors import TandemError


class OutOfBlocks(TandemError):
    """Fewer blocks are free than were asked for; nothing was allocated."""

    def __init__(self, wanted: int, free: int, total: int) -> None:
        super().__init__("overloaded", f"{wanted} KV blocks wanted, {free} of {total} are free; retry later")


class BlockPool:
    """Hands out block ids, in as few and as long runs of consecutive ids as it can, so that transfers coalesce.

    Free blocks are kept as maximal runs. An allocation takes the smallest run that holds all of it, so that long
    runs last; where there is none it takes the longest runs first. A block may have several holders and is free when
    the last one has freed it. Thread-safe.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a pool needs at least 1")
        self.num_blocks = num_blocks
        self._lock = threading.Lock()
        self._holders = [0] * num_blocks
        self._length_at = {0: num_blocks}
        """Free runs: first id to length."""
        self._start_before = {num_blocks: 0}
        """The same runs: first id after the run to its first id."""
        self._free = num_blocks
        self._pinned: set[int] = set()
        """Some have no holder any more: they become free when they are unpinned."""

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds."""
        return self._free

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.free_count

    def can_allocate(self, n: int) -> bool:
        """Whether ``allocate(n)`` would succeed now."""
        return n <= self.free_count

    def holders(self, block: int) -> int:
        """How many hold ``block``."""
        return self._holders[block]

    def allocate(self, n: int) -> list[int]:
        """Take ``n`` blocks, ids ascending.

        Raises:
            OutOfBlocks: fewer than ``n`` are free.
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"cannot allocate {n} blocks; the number must be 0 or more")
        with self._lock:
            return self._allocate(n)

    def hold(self, ids: Iterable[int]) -> None:
        """Become one more holder of blocks that others hold: each is to be freed once more.

        Raises:
            ValueError: a block is not in use, or named twice here.
        """
        held = list(ids)
        with self._lock:
            self._require_in_use(held)
            for block in held:
                self._holders[block] += 1

    def free(self, ids: Iterable[int]) -> None:
        """Hold blocks no longer, in any order; all or none. Those that nobody holds then are free; pinned ones become
        so when they are unpinned.

        Raises:
            ValueError: a block is not in use (freed twice, never allocated, or named twice here).
        """
        freed = list(ids)
        with self._lock:
            self._require_in_use(freed)
            for block in freed:
                self._holders[block] -= 1
            self._release([block for block in freed if not self._holders[block] and block not in self._pinned])

    def pin(self, ids: Iterable[int]) -> None:
        """Keep blocks from being handed out again, whoever frees them: something may still write to them.

        Raises:
            ValueError: a block is not in use, or pinned already.
        """
        ordered = sorted(ids)
        with self._lock:
            self._require_in_use(ordered)
            if pinned := [block for block in ordered if block in self._pinned]:
                raise ValueError(f"blocks {pinned[:8]} are pinned already")
            self._pinned.update(ordered)

    def unpin(self, ids: Iterable[int]) -> None:
        """End ``pin``: those that were freed meanwhile are free now.

        Raises:
            ValueError: a block is not pinned.
        """
        ordered = sorted(set(ids))
        with self._lock:
            if loose := [block for block in ordered if block not in self._pinned]:
                raise ValueError(f"blocks {loose[:8]} are not pinned")
            self._pinned.difference_update(ordered)
            self._release([block for block in ordered if not self._holders[block]])

    def _allocate(self, n: int) -> list[int]:
        if n > self._free:
            raise OutOfBlocks(n, self._free, self.num_blocks)
        ids: list[int] = []
        while len(ids) < n:
            ids += self._take(n - len(ids))
        self._free -= n
        return sorted(ids)

    def _release(self, blocks: list[int]) -> None:
        """The last holders of these have gone."""
        self._give_all(sorted(blocks))

    def _take(self, n: int) -> range:
        """Up to ``n`` blocks out of one run: the smallest that fits, else the longest there is."""
        fitting = [(length, start) for start, length in self._length_at.items() if length >= n]
        length, start = min(fitting) if fitting else max((v, k) for k, v in self._length_at.items())
        taken = min(n, length)
        self._remove(start)
        if taken < length:
            self._add(start + taken, length - taken)
        self._holders[start : start + taken] = [1] * taken
        return range(start, start + taken)

    def _require_in_use(self, blocks: list[int]) -> None:
        previous = -1
        for block in sorted(blocks):
            if not 0 <= block < self.num_blocks:
                raise ValueError(f"block {block} is not one of this pool's, 0 to {self.num_blocks - 1}")
            if block == previous or not self._holders[block]:
                raise ValueError(f"block {block} is not in use: it was freed twice or never allocated")
            previous = block

    def _give_all(self, ordered: list[int]) -> None:
        for start, length in _runs(ordered):
            self._give(start, length)
        self._free += len(ordered)

    def _give(self, start: int, length: int) -> None:
        """Put a run back and join it with its free neighbours."""
        if (before := self._start_before.get(start)) is not None:
            length += self._remove(before)
            start = before
        if start + length in self._length_at:
            length += self._remove(start + length)
        self._add(start, length)

    def _add(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start

    def _remove(self, start: int) -> int:
        length = self._length_at.pop(start)
        del self._start_before[start + length]
        return length


def _runs(ordered: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending ids as (first id, length) of maximal consecutive runs."""
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield ordered[start], i - start
            start = i
