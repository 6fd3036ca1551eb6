"""The workers as a router sees them: one row each, kept in columns, so that all are weighed at once."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tandem.messages import Load, Role, StageName, does
from tandem.routing.answers import AnswerLengths
from tandem.routing.speeds import Speeds
from tandem.routing.worker import Amounts, Booking, WorkerState

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Places = frozenset[int]
NOBODY: Places = frozenset()

COLUMNS = (
    "wait_s",
    "prefill_s",
    "prefill_more_s",
    "prefill_step_s",
    "step_s",
    "pull_s",
    "in_hand",
    "stalled",
    "batch_share",
    "used_share",
    "block_share",
)


class WorkerTable:
    """All workers of a deployment, each at its place, counted from 0. Columns have shape [workers]."""

    columns: Numbers
    """All of them, in the order of ``COLUMNS``; shape [columns, workers]."""
    wait_s: Numbers
    """Until it has read the prompts that it has in hand."""
    prefill_s: Numbers
    """Per uncached prompt token."""
    prefill_more_s: Numbers
    """Per token that a prefill step reads more than others: far less than that where only short prompts have come."""
    prefill_step_s: Numbers
    """Per prefill step."""
    step_s: Numbers
    """Per decode step, with one more sequence than now."""
    pull_s: Numbers
    """Per byte of KV from another worker."""
    in_hand: Numbers
    """Requests."""
    stalled: Numbers
    """Answers that stand still while it reads a prompt: those in hand, one at least."""
    batch_share: Numbers
    """Of the largest batch, what would be taken with one more sequence; above 1 somebody waits."""
    used_share: Numbers
    """Of the KV blocks, what is taken, or will be as answers grow."""
    block_share: Numbers
    """What one block is of all; 0 where that is not known."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """By place; never changed, but replaced, so that a plan may keep it. Empty where a place is free."""
        self._roles: list[Role | None] = []
        self._free: list[int] = []
        self._workers: list[WorkerState] = []
        self._typical, self.answers = Speeds(), AnswerLengths()
        self.coming = Amounts()
        """Of this router's work in hand, what decode workers will get when its prompts have been read elsewhere."""
        self.tokens_per_byte = math.inf
        """Of prompts, as many as are read in the time that a byte of KV takes to come from elsewhere."""
        self.has_measured_prefill = False
        """Whether any worker has told how fast it reads prompts: before that, all such times are guesses."""
        self._usable: Flags = np.zeros(0, np.bool_)
        self._paired: Flags = np.zeros((0, 0), np.bool_)
        self._bars: dict[object, Numbers | None] = {}
        """Worked out since somebody joined, left or was paired."""
        self._set_columns(np.zeros((len(COLUMNS), 0), np.float64))

    # -------------------------------------------------------------- who there is

    def add(self, name: str, role: Role) -> int:
        """A worker that is not there yet; returns its place, which may be that of one that was removed."""
        place = self._free.pop() if self._free else self._grow()
        self._occupy(place, name, role)
        self._write(place, self._workers[place])
        self._write_speeds(place)
        return place

    def remove(self, place: int) -> None:
        """A worker is gone for good; its place will be another's. What is still booked there counts for nobody."""
        self.lose(place)
        self._occupy(place, "", None)
        self._free.append(place)

    def _occupy(self, place: int, name: str, role: Role | None) -> None:
        self.names = [*self.names[:place], name, *self.names[place + 1 :]]
        self._roles[place] = role
        self._workers[place] = self._make_state(place)
        self._forget_answers()

    def _grow(self) -> int:
        """One more place; returns it."""
        place = len(self.names)
        self.names = [*self.names, ""]
        self._roles.append(None)
        self._usable = np.append(self._usable, False)
        self._paired = np.pad(self._paired, (0, 1))
        self._set_columns(np.pad(self.columns, ((0, 0), (0, 1))))
        self._workers.append(self._make_state(place))
        return place

    def _set_columns(self, columns: Numbers) -> None:
        self.columns = columns
        for name, row in zip(COLUMNS, columns, strict=True):
            setattr(self, name, row)

    def _make_state(self, place: int) -> WorkerState:
        return WorkerState(self._typical, self.answers, partial(self._write, place))

    def join(self, place: int, largest_batch: int, load: Load) -> None:
        """A worker is there, with a new engine."""
        self._usable[place] = True
        self._forget_answers()
        self._workers[place].begin(largest_batch, load)
        self._write_speeds(place)

    def lose(self, place: int) -> None:
        """A worker is gone."""
        self._paired[place] = self._paired[:, place] = False
        self._workers[place].end()
        self.drain(place)

    def drain(self, place: int) -> None:
        """A worker takes no new work from now on, until it joins anew."""
        self._usable[place] = False
        self._forget_answers()

    def resume(self, place: int) -> None:
        """A worker that was drained takes new work again."""
        self._usable[place] = True
        self._forget_answers()

    def pair(self, one: int, other: int) -> None:
        """KV can move between these two from now on."""
        self._paired[one, other] = self._paired[other, one] = True
        self._forget_answers()

    def _forget_answers(self) -> None:
        """Others take new work than before."""
        self._bars.clear()

    def deployed(self, stage: StageName) -> list[str]:
        """The names of a stage's workers, whether they are there or not."""
        return [name for name, role in zip(self.names, self._roles, strict=True) if role and does(role, stage)]

    def bar(self, stage: StageName, partner: int | None = None, avoid: Places = NOBODY) -> Numbers | None:
        """Who of a stage takes new work: 0 for those, infinite for all others; None if there is nobody. With
        ``partner`` only those that are paired with it; none of ``avoid``."""
        key = (stage, partner, avoid)
        if key not in self._bars:
            self._bars[key] = _bar_of(self._usable_in(stage, partner, avoid))
        return self._bars[key]

    def paired_bar(self, avoid: Places = NOBODY) -> Numbers | None:
        """Likewise the prefill workers that are paired with a decode worker which takes new work."""
        key = ("paired", avoid)
        if key not in self._bars:
            self._bars[key] = _bar_of(self._usable_pairs(avoid))
        return self._bars[key]

    def _usable_in(self, stage: StageName, partner: int | None, avoid: Places) -> Flags:
        flags = self._usable & np.array([role is not None and does(role, stage) for role in self._roles], np.bool_)
        flags[list(avoid)] = False
        return flags if partner is None else flags & self._paired[partner]

    def _usable_pairs(self, avoid: Places) -> Flags:
        partners = self._paired & self._usable_in("decode", None, avoid)
        flags: Flags = self._usable_in("prefill", None, avoid) & partners.any(axis=1)
        return flags

    def takes(self, place: int, stage: StageName) -> bool:
        """Whether a worker takes new work of a stage."""
        bar = self.bar(stage)
        return bar is not None and bar.item(place) == 0.0

    def usable(self, stage: StageName) -> int:
        """How many of a stage take new work."""
        bar = self.bar(stage)
        return 0 if bar is None else len(bar) - int(np.count_nonzero(bar))

    # -------------------------------------------------------------- what they have in hand

    def idle_blocks(self, stage: StageName) -> float:
        """KV blocks of a stage's workers that no request holds, or will as answers grow."""
        bar = self.bar(stage)
        if bar is None:
            return 0.0
        known = (bar == 0.0) & (self.block_share > 0.0)
        return float((np.maximum(1.0 - self.used_share[known], 0.0) / self.block_share[known]).sum())

    def is_paired(self, one: int, other: int) -> bool:
        """Whether KV can move between these two."""
        return bool(self._paired[one, other])

    def report(self, place: int, load: Load) -> None:
        """A worker says how it does."""
        self._workers[place].report(load)
        self._write_speeds(place)

    def own(self, place: int) -> int:
        """Requests of this router that a worker was chosen for and that have not ended there."""
        return self._workers[place].own_requests

    def book(self, place: int, tokens: int, blocks: int, *, later: bool = False) -> Booking:
        """A request is going to this worker, with so many tokens to be read; it takes so many blocks. ``later``: it is
        read elsewhere before."""
        return Booking(self._workers[place], tokens, blocks, self.coming if later else None)

    def _write(self, place: int, worker: WorkerState) -> None:
        """Bring up to date what follows from what a worker has in hand."""
        if worker is not self._workers[place]:
            return  # removed since
        requests = worker.requests
        self.wait_s[place] = worker.tokens * worker.prefill_s
        self.step_s[place] = worker.step_s(requests + 1)
        self.in_hand[place] = requests
        self.stalled[place] = requests or 1
        self.batch_share[place] = (requests + 1) / worker.largest_batch
        self.used_share[place] = worker.blocks / worker.blocks_total if worker.blocks_total else 0.0

    def _write_speeds(self, place: int) -> None:
        worker = self._workers[place]
        self.prefill_s[place], self.pull_s[place] = worker.prefill_s, worker.pull_s
        self.prefill_more_s[place], self.prefill_step_s[place] = worker.prefill_more_s, worker.prefill_step_s
        self.block_share[place] = 1 / worker.blocks_total if worker.blocks_total else 0.0
        prefill, pull = self._typical.prefill, self._typical.pull
        self.has_measured_prefill = prefill.known
        if prefill.known and pull.known:
            self.tokens_per_byte = pull.value / prefill.token_s


def _bar_of(flags: Flags) -> Numbers | None:
    """0 where a flag is set, infinite elsewhere; None if none is."""
    return np.where(flags, 0.0, np.inf) if flags.any() else None
