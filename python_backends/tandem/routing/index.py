"""Which KV blocks the workers hold, as they report it, and as this router expects it of its own choices.

Who holds a block holds all before it in its chain, since caches give up the end of a chain first. So where some of its
holders hold no more is found by halving, in a few looks however long the chain and however many the workers.
"""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from tandem.kv.hashes import Hashes, pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored, KvReport
from tandem.routing import blocks
from tandem.routing.blocks import BlockTable
from tandem.routing.reports import ReportCursor
from tandem.routing.reuse import Chances, Reuse
from tandem.routing.table import Numbers


class Held(msgspec.Struct, frozen=True, gc=False):
    """Who holds how much of a chain of blocks, from its start on."""

    counts: Numbers
    """Of blocks, for each worker; shape [places]."""
    most: int
    """Of them."""

    def holder(self, turn: int) -> int:
        """One of those who hold most; there must be one who holds any. ``turn`` says which of the first few: a next
        turn's may be another."""
        return blocks.find_holder(self.counts, self.most, turn)


class _Worker:
    """What is known of one worker's prefix cache."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.cursor = ReportCursor()
        self.reports = False
        """Whether its engine tells what it holds."""
        self.table = BlockTable()
        """Blocks that it holds, and those that it should soon report."""


class PrefixIndex:
    """Blocks of many workers. Workers are known by their place, counted from 0 in the order of ``add``."""

    def __init__(self) -> None:
        self._holders = BlockTable(width=2)
        self._workers: list[_Worker] = []
        self._expectations: deque[tuple[float, int, int | None, Hashes]] = deque()
        self._reuse = Reuse()
        self._now = 0.0

    def __len__(self) -> int:
        """Number of blocks that anybody holds."""
        return self._holders.taken

    def add(self) -> int:
        """A new worker, of which nothing is known; returns its place."""
        place = len(self._workers)
        self._holders.make_room_for_worker(place)
        self._workers.append(_Worker())
        self._reuse.add()
        return place

    # -------------------------------------------------------------- what workers say

    def begin(self, place: int, epoch: int | None) -> None:
        """A worker has started anew, or with None is gone: what it held is forgotten."""
        self._forget(place)
        self._reuse.begin(place)
        self._workers[place] = _Worker()
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
        before = worker.table
        if news.replaces:
            self._forget(place)
            worker.table = BlockTable()
        for event in news.events:
            if isinstance(event, BlocksStored):
                self._store(place, pack_hashes(event.hashes))
            else:
                self._remove(place, event)
        if news.replaces:
            own = worker.table
            self._make_room(own, before.taken)
            self._count(own, *blocks.carry_over(self._holders.rows, before.rows, own.rows, place))

    def _forget(self, place: int) -> None:
        self._holders.taken -= blocks.forget(self._holders.rows, self._workers[place].table.rows, place)

    def _store(self, place: int, hashes: Hashes) -> None:
        own = self._workers[place].table
        self._make_room(own, len(hashes))
        self._count(own, *blocks.store(self._holders.rows, own.rows, hashes, place, self._now))

    def _remove(self, place: int, event: BlocksRemoved) -> None:
        own = self._workers[place].table
        used, gone_blocks, gone_rows = blocks.remove(self._holders.rows, own.rows, pack_hashes(event.hashes), place)
        self._count(own, -gone_blocks, -gone_rows)
        if not event.spare:
            self._reuse.evicted(place, used)

    def _make_room(self, own: BlockTable, more: int) -> None:
        self._holders.make_room(more)
        own.make_room(more)

    def _count(self, own: BlockTable, new_blocks: int, new_rows: int) -> None:
        self._holders.taken += new_blocks
        own.taken += new_rows

    # -------------------------------------------------------------- what this router has brought about

    def give(self, place: int, hashes: Hashes, held: int, now: float, until: float) -> None:
        """A worker is given a prompt of these blocks, of which it holds the first ``held``. The others are about to be
        computed there: they count as held until it reports them, or ``until`` has come. A worker that never reports
        does not keep blocks, and is believed to hold none.

        ``until`` must not go back from call to call.
        """
        worker = self._workers[place]
        if not worker.reports or not len(hashes):
            return
        own = worker.table
        self._make_room(own, len(hashes) - held)
        age_s, new_blocks, new_rows = blocks.expect(self._holders.rows, own.rows, hashes, held, place, now, until)
        self._count(own, new_blocks, new_rows)
        self._reuse.placed(len(hashes), held, age_s)
        self._expectations.append((until, place, worker.epoch, hashes[held:]))

    def expire(self, now: float) -> None:
        """It is ``now``: stop believing in what should have been reported by now."""
        self._now = now
        expectations = self._expectations
        while expectations and expectations[0][0] <= now:
            _, place, epoch, hashes = expectations.popleft()
            worker = self._workers[place]
            if epoch == worker.epoch:
                own = worker.table
                gone_blocks, gone_rows = blocks.stop_expecting(self._holders.rows, own.rows, hashes, place, now)
                self._count(own, -gone_blocks, -gone_rows)

    # -------------------------------------------------------------- the questions

    def chances(self) -> Chances:
        """For each worker, how likely the next block that it gives up would be asked for again; shape [workers]."""
        return self._reuse.chances(self._now)

    def reported(self, place: int, hashes: Hashes, held: int) -> int:
        """Of the first ``held`` blocks that a worker is believed to hold, how many it has reported: the others are yet
        to be computed there."""
        return blocks.count_reported(self._workers[place].table.rows, hashes, held)

    def held(self, hashes: Hashes) -> Held:
        """Who holds how much of this chain."""
        counts = np.zeros(len(self._workers), np.float64)
        return Held(counts, blocks.count_held(self._holders.rows, hashes, counts))
