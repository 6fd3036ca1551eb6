"""Who holds which KV blocks, as the workers report it, and as this router expects it of its own choices.

The holders of a block are one integer, a bit for each worker. Who holds a block holds all before it in its chain, since
caches give up the end of a chain first: so where some of them hold no more is found by halving, in a few looks however
long the chain and however many the workers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import msgspec
import numpy as np

from tandem.messages import BlocksRemoved, BlocksStored, KvReport
from tandem.routing.reports import ReportCursor
from tandem.routing.reuse import Chances, Reuse
from tandem.routing.table import Numbers

FEW = 6
"""So many places are quicker written to one by one than all at once."""


class Held(msgspec.Struct, frozen=True, gc=False):
    """Who holds how much of a chain of blocks, from its start on."""

    places: int
    """Of workers, whether they hold anything or not."""
    runs: list[tuple[int, int]]
    """Who holds equally many blocks, a bit for each, and how many; ascending."""

    def most(self, turn: int) -> tuple[int, int]:
        """One of those who hold most, and how many blocks; there must be one who holds any. ``turn`` says which of the
        first few: a next turn's may be another."""
        workers, blocks = self.runs[-1]
        for _ in range(turn % min(workers.bit_count(), FEW)):
            workers &= workers - 1
        return (workers & -workers).bit_length() - 1, blocks

    @property
    def counts(self) -> Numbers:
        """Of blocks, for each worker; shape [places]."""
        counts = np.zeros(self.places, np.float64)
        for workers, blocks in self.runs:
            _write(counts, workers, blocks)
        return counts


class _Worker:
    """What is known of one worker's prefix cache."""

    def __init__(self, place: int) -> None:
        self.bit = 1 << place
        self.epoch: int | None = None
        self.cursor = ReportCursor()
        self.reports = False
        """Whether its engine tells what it holds."""
        self.blocks: dict[int, float] = {}
        """Those that it holds, and when each was stored, or last used as the end of what a prompt found. Ends of chains
        are evicted first, so the others' times do not matter."""
        self.expected: dict[int, float] = {}
        """Blocks that it should soon report, and until when that is believed."""


class PrefixIndex:
    """Block hashes of many workers. Workers are known by their place, counted from 0 in the order of ``add``."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._workers: list[_Worker] = []
        self._expectations: deque[tuple[float, int, int | None, Sequence[int]]] = deque()
        self._reuse = Reuse()
        self._now = 0.0

    def __len__(self) -> int:
        """Number of blocks that anybody holds."""
        return len(self._holders)

    def add(self) -> int:
        """A new worker, of which nothing is known; returns its place."""
        place = len(self._workers)
        self._workers.append(_Worker(place))
        self._reuse.add()
        return place

    # -------------------------------------------------------------- what workers say

    def begin(self, place: int, epoch: int | None) -> None:
        """A worker has started anew, or with None is gone: what it held is forgotten."""
        worker = self._workers[place]
        self._drop(worker, worker.blocks.keys() | worker.expected.keys())
        self._reuse.begin(place)
        self._workers[place] = _Worker(place)
        self._workers[place].epoch = epoch

    def next_number(self, place: int) -> int:
        """Number of the next change that is to be asked of a worker (``Poll.kv_from``)."""
        return self._workers[place].cursor.next_number

    def take(self, place: int, epoch: int, report: KvReport) -> None:
        """Take in a worker's report; one of another epoch, an old one, and one after a gap change nothing."""
        worker = self._workers[place]
        if epoch != worker.epoch:
            return
        worker.reports = True
        news = worker.cursor.read(report)
        if news is None:
            return
        before: dict[int, float] = {}
        if news.replaces:
            before, worker.blocks = worker.blocks, {}
            self._drop(worker, before.keys() - worker.expected.keys())
        for event in news.events:
            if isinstance(event, BlocksStored):
                self._store(worker, event.hashes)
            else:
                self._remove(worker, place, event)
        if before:  # a snapshot does not say how old its blocks are
            worker.blocks.update((name, before[name]) for name in before.keys() & worker.blocks.keys())

    def _store(self, worker: _Worker, hashes: Sequence[int]) -> None:
        worker.blocks.update(dict.fromkeys(hashes, self._now))
        self._mark(worker, hashes)
        if worker.expected:
            for name in hashes:
                worker.expected.pop(name, None)

    def _remove(self, worker: _Worker, place: int, event: BlocksRemoved) -> None:
        hashes = event.hashes
        used = max(map(worker.blocks.pop, hashes, repeat(-math.inf)), default=-math.inf)
        if not event.spare:
            self._reuse.evicted(place, used)
        self._drop(worker, hashes)
        if worker.expected:
            for name in hashes:
                worker.expected.pop(name, None)

    def _mark(self, worker: _Worker, hashes: Iterable[int]) -> None:
        holders, bit = self._holders, worker.bit
        get = holders.get
        for name in hashes:
            holders[name] = get(name, 0) | bit

    def _drop(self, worker: _Worker, hashes: Iterable[int]) -> None:
        holders, others = self._holders, ~worker.bit
        for name in hashes:
            rest = holders.get(name, 0) & others
            if rest:
                holders[name] = rest
            else:
                holders.pop(name, None)

    # -------------------------------------------------------------- what this router has brought about

    def give(self, place: int, hashes: Sequence[int], held: int, now: float, until: float) -> None:
        """A worker is given a prompt of these blocks, of which it holds the first ``held``. The others are about to be
        computed there: they count as held until it reports them, or ``until`` has come. A worker that never reports
        does not keep blocks, and is believed to hold none.

        ``until`` must not go back from call to call.
        """
        worker = self._workers[place]
        if not worker.reports or not hashes:
            return
        known, expected = worker.blocks, worker.expected
        age_s = 0.0
        if held and (used := known.get(last := hashes[held - 1])) is not None:
            age_s, known[last] = now - used, now
        self._reuse.placed(len(hashes), held, age_s)
        holders, bit, new = self._holders, worker.bit, []
        for name in hashes[held:]:
            others = holders.get(name, 0)
            if not (others & bit and name in known):
                holders[name], expected[name] = others | bit, until
                new.append(name)
        self._expectations.append((until, place, worker.epoch, new))

    def expire(self, now: float) -> None:
        """It is ``now``: stop believing in what should have been reported by now."""
        self._now = now
        expectations = self._expectations
        while expectations and expectations[0][0] <= now:
            _, place, epoch, hashes = expectations.popleft()
            worker = self._workers[place]
            if epoch == worker.epoch and (expected := worker.expected):
                over = [name for name in hashes if expected.get(name, math.inf) <= now]
                for name in over:
                    del expected[name]
                self._drop(worker, over)

    # -------------------------------------------------------------- the questions

    def chances(self) -> Chances:
        """For each worker, how likely the next block that it gives up would be asked for again; shape [workers]."""
        return self._reuse.chances(self._now)

    def reported(self, place: int, hashes: Sequence[int], held: int) -> int:
        """Of the first ``held`` blocks that a worker is believed to hold, how many it has reported: the others are yet
        to be computed there."""
        expected = self._workers[place].expected
        while held and hashes[held - 1] in expected:
            held -= 1
        return held

    def held(self, hashes: Sequence[int]) -> Held:
        """Who holds how much of this chain."""
        get = self._holders.get
        runs: list[tuple[int, int]] = []
        left, length = get(hashes[0], 0) if hashes else 0, 0
        while left:
            length = _find_end(hashes, length + 1, get, left)
            stay = left & get(hashes[length], 0) if length < len(hashes) else 0
            runs.append((left ^ stay, length))
            left = stay
        return Held(len(self._workers), runs)


def _find_end(hashes: Sequence[int], start: int, get: Callable[[int, int], int], workers: int) -> int:
    """Of the first block from ``start`` on that not all these workers hold, or that is not there."""
    return bisect_left(hashes, True, start, key=lambda name: get(name, 0) & workers != workers)


def _write(values: Numbers, workers: int, value: float) -> None:
    """Write ``value`` at the places of the bits that are set in ``workers``."""
    if workers.bit_count() <= FEW:
        while workers:
            values[workers.bit_length() - 1] = value
            workers ^= 1 << (workers.bit_length() - 1)
        return
    size = len(values)
    data = np.frombuffer(workers.to_bytes((size + 7) // 8, "little"), np.uint8)
    values[np.unpackbits(data, count=size, bitorder="little").view(np.bool_)] = value
