"""LeaseTable against a model, with a clock of our own, in any order of events."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tandem.errors import TandemError
from tandem.kv import leases
from tandem.kv.blocks import BlockPool
from tandem.kv.leases import LeaseTable
from tandem.kv.memory import Words

LEASE_S = 10.0
BLOCKS = 24
WORDS = 5


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """One lease as the model sees it: ``end`` is the code that refuses it, or None while it is held."""

    def __init__(self, request_id: str, blocks: list[int], deadline: float) -> None:
        self.request_id, self.blocks, self.deadline = request_id, blocks, deadline
        self.end: str | None = None
        self.claimant = ""


class Leases(RuleBasedStateMachine):
    """Grants, confirmations (also double, late, and of leases that never were), cancels and expiries in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pool = BlockPool(BLOCKS)
        self.words = np.zeros(WORDS, np.uint64)
        self.table = LeaseTable(self.pool, LEASE_S, self.clock, self.words)
        self.model: dict[int, Model] = {}
        self.computing: list[list[int]] = []
        """Blocks that a prefill is still filling: allocated, not under lease."""

    def model_expire(self) -> None:
        for lease in self.model.values():
            if lease.end is None and lease.deadline <= self.clock.now:
                lease.end = "lease_expired"

    @rule(n=st.integers(1, 8))
    def begin_prefill(self, n: int) -> None:
        if self.pool.can_allocate(n):
            ids = self.pool.allocate(n)
            held = [b for lease in self.model.values() if lease.end is None for b in lease.blocks]
            assert not set(ids) & {*held, *(b for c in self.computing for b in c)}, "a block in two hands"
            self.computing.append(ids)

    @precondition(lambda self: self.computing)
    @rule(data=st.data(), request=st.sampled_from("abc"))
    def grant(self, data: st.DataObject, request: str) -> None:
        ids = self.computing.pop(data.draw(st.integers(0, len(self.computing) - 1)))
        lease_id = self.table.grant(request, ids)
        assert lease_id not in self.model
        self.model[lease_id] = Model(request, ids, self.clock.now + LEASE_S)

    @rule(step=st.sampled_from([0.0, 0.5, 3.0, LEASE_S - 0.001, LEASE_S]))
    def time_passes(self, step: float) -> None:
        self.clock.now += step

    @rule(data=st.data(), claimant=st.sampled_from(["", "one", "two"]), ends=st.booleans())
    def confirm(self, data: st.DataObject, claimant: str, ends: bool) -> None:
        """Any lease, held or ended long ago: just the first confirmation in time succeeds, if nobody else has claimed
        the lease. Or it is claimed itself."""
        lease_id = data.draw(st.sampled_from([*self.model, 0, len(self.model) + 1]))
        self.model_expire()
        lease = self.model.get(lease_id)
        expected = "lease_unknown" if lease is None else lease.end
        if lease is not None and lease.claimant not in ("", claimant):
            expected = expected or "handle_used"
        act = self.table.confirm if ends else self.table.claim
        if expected is None:
            act(lease_id, claimant)
            assert lease is not None
            lease.claimant, lease.end = claimant, "handle_used" if ends else None
        else:
            with pytest.raises(TandemError) as refusal:
                act(lease_id, claimant)
            assert refusal.value.code == expected
            assert str(lease_id) in str(refusal.value)

    @rule(requests=st.lists(st.sampled_from(["a", "b", "c", "nobody"]), max_size=3))
    def cancel(self, requests: list[str]) -> None:
        self.model_expire()
        self.table.cancel(requests)
        for lease in self.model.values():
            if lease.end is None and lease.request_id in requests:
                lease.end = "lease_cancelled"

    @rule()
    def expire(self) -> None:
        self.model_expire()
        self.table.expire()

    @rule()
    def grant_twice(self) -> None:
        """Blocks under lease cannot come under a second one."""
        self.table.expire()
        self.model_expire()
        held = [lease for lease in self.model.values() if lease.end is None]
        if held:
            with pytest.raises(ValueError, match="under lease already"):
                self.table.grant("again", held[0].blocks)

    @invariant()
    def no_block_leaks(self) -> None:
        """Overdue leases may wait for the next call; apart from them the counts are exact."""
        held = [lease for lease in self.model.values() if lease.end is None]
        assert self.table.held == len(held)
        assert self.table.granted == len(self.model)
        assert self.table.expired == sum(lease.end == "lease_expired" for lease in self.model.values())
        assert self.pool.used == sum(map(len, self.computing)) + sum(len(lease.blocks) for lease in held)

    @invariant()
    def no_lease_that_has_ended_is_seen_to_hold(self) -> None:
        """Nor is one left out for which there is a place."""
        held = {lease_id for lease_id, lease in self.model.items() if lease.end is None}
        seen = {int(word) for word in self.words} - {0}
        assert seen <= held
        assert all(self.words[lease_id % WORDS] for lease_id in held if lease_id > len(self.model) - WORDS)

    def teardown(self) -> None:
        self.clock.now += 2 * LEASE_S
        self.table.expire()
        assert self.table.held == 0
        assert self.pool.used == sum(map(len, self.computing))


Leases.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestLeases = Leases.TestCase


class WatchedPool(BlockPool):
    """Notes what words stand when blocks come free."""

    def __init__(self, words: Words) -> None:
        super().__init__(BLOCKS)
        self._words, self.seen = words, list[list[int]]()

    def free(self, ids: Iterable[int]) -> None:
        self.seen.append(self._words.tolist())
        super().free(ids)


@pytest.mark.parametrize("end", ["confirm", "cancel", "expire"])
def test_a_word_goes_before_its_blocks_do(clock: Clock, end: str) -> None:
    words = np.zeros(1, np.uint64)
    pool = WatchedPool(words)
    table = LeaseTable(pool, LEASE_S, clock, words)
    lease = table.grant("r", pool.allocate(1))
    assert words.tolist() == [lease]
    if end == "confirm":
        table.confirm(lease)
    elif end == "cancel":
        table.cancel(["r"])
    else:
        clock.now += LEASE_S
        table.expire()
    assert pool.seen == [[0]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(BLOCKS)


@pytest.fixture
def table(pool: BlockPool, clock: Clock) -> LeaseTable:
    return LeaseTable(pool, LEASE_S, clock)


def refusal(table: LeaseTable, lease_id: int) -> str:
    with pytest.raises(TandemError) as error:
        table.confirm(lease_id)
    return error.value.code


def test_overdue_lease_is_refused_before_anyone_ran_expire(table: LeaseTable, pool: BlockPool, clock: Clock) -> None:
    lease_id = table.grant("r", pool.allocate(3))
    clock.now += LEASE_S
    assert refusal(table, lease_id) == "lease_expired"
    assert (table.held, table.expired, pool.used) == (0, 1, 0)


def test_lease_holds_until_its_last_moment(table: LeaseTable, pool: BlockPool, clock: Clock) -> None:
    lease_id = table.grant("r", pool.allocate(3))
    clock.now += LEASE_S - 1e-6
    table.expire()
    table.confirm(lease_id)
    assert (table.held, table.expired, pool.used) == (0, 0, 0)


def test_grant_wakes_who_listens(table: LeaseTable, pool: BlockPool) -> None:
    seen: list[int] = []
    table.on_grant = lambda: seen.append(table.held)
    table.grant("r", pool.allocate(1))
    assert seen == [1]


def test_block_named_twice_is_refused(table: LeaseTable, pool: BlockPool) -> None:
    pool.allocate(2)
    with pytest.raises(ValueError, match=r"blocks \[1\] of request 'r'"):
        table.grant("r", [0, 1, 1])
    assert table.held == 0


def test_memory_of_ended_leases_is_bounded(table: LeaseTable, pool: BlockPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "REMEMBERED", 3)
    for _ in range(5):
        table.confirm(table.grant("r", pool.allocate(1)))
    assert [refusal(table, i) for i in range(1, 6)] == ["lease_unknown"] * 2 + ["handle_used"] * 3
