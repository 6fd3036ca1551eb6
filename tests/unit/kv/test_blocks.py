"""BlockPool against a model that is a plain set."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tandem.errors import TandemError
from tandem.kv.blocks import BlockPool, OutOfBlocks


def longest_free_run(free: set[int]) -> int:
    best = 0
    for block in free:
        if block - 1 not in free:
            end = block
            while end in free:
                end += 1
            best = max(best, end - block)
    return best


class PoolAgainstModel(RuleBasedStateMachine):
    """The model: the set of free ids, and the list of what was handed out."""

    @initialize(size=st.integers(1, 40))
    def start(self, size: int) -> None:
        self.pool = BlockPool(size)
        self.free = set(range(size))
        self.held: list[list[int]] = []
        self.pinned: set[int] = set()
        self.freed_while_pinned: set[int] = set()

    @rule(n=st.integers(0, 45))
    def allocate(self, n: int) -> None:
        assert self.pool.can_allocate(n) == (n <= len(self.free))
        if n > len(self.free):
            with pytest.raises(OutOfBlocks) as refusal:
                self.pool.allocate(n)
            assert refusal.value.code == "overloaded"
            assert f"{n} KV blocks wanted, {len(self.free)} of {self.pool.num_blocks} are free" in str(refusal.value)
            return
        longest = longest_free_run(self.free)
        ids = self.pool.allocate(n)
        assert len(ids) == n
        assert ids == sorted(set(ids))
        assert self.free.issuperset(ids), "a block in two hands"
        if n <= longest:
            assert ids == list(range(ids[0], ids[0] + n)) if n else ids == []
        self.free.difference_update(ids)
        self.held.append(ids)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_part(self, data: st.DataObject) -> None:
        ids = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        part = data.draw(st.permutations(ids)) if ids else []
        cut = data.draw(st.integers(0, len(part)))
        self.pool.free(part[:cut])
        self.freed_while_pinned.update(self.pinned.intersection(part[:cut]))
        self.free.update(b for b in part[:cut] if b not in self.pinned)
        if part[cut:]:
            self.held.append(part[cut:])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        ids = set(data.draw(st.sampled_from(self.held)))
        if already := ids & self.pinned:
            with pytest.raises(ValueError, match="pinned already"):
                self.pool.pin(ids)
            assert already
            return
        self.pool.pin(ids)
        self.pinned |= ids

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        ids = data.draw(st.sets(st.sampled_from(sorted(self.pinned)), min_size=1))
        with pytest.raises(ValueError, match="are not pinned"):
            self.pool.unpin([*ids, self.pool.num_blocks])
        self.pool.unpin(ids)
        self.pinned -= ids
        self.free |= ids & self.freed_while_pinned
        self.freed_while_pinned -= ids

    @rule(data=st.data())
    def free_wrongly(self, data: st.DataObject) -> None:
        """One block that is not in use spoils the whole call."""
        gone = self.free | self.freed_while_pinned
        in_use = sorted(set(range(self.pool.num_blocks)) - gone)
        wrong = data.draw(st.sampled_from([*sorted(gone), -1, self.pool.num_blocks]))
        good = data.draw(st.lists(st.sampled_from(in_use), unique=True)) if in_use else []
        with pytest.raises(ValueError, match=f"block {wrong} is not"):
            self.pool.free([*good, wrong])

    @precondition(lambda self: self.held and self.held[0])
    @rule()
    def free_twice_in_one_call(self) -> None:
        block = self.held[0][0]
        with pytest.raises(ValueError, match=f"block {block} is not in use"):
            self.pool.free([block, block])

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.free_count == len(self.free)
            assert self.pool.used == self.pool.num_blocks - len(self.free)


PoolAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolAgainstModel = PoolAgainstModel.TestCase


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_freed_blocks_join_again(sizes: list[int], order: object) -> None:
    pool = BlockPool(sum(sizes))
    held = [pool.allocate(n) for n in sizes]
    order.shuffle(held)  # type: ignore[attr-defined]
    for ids in held:
        pool.free(ids)
    assert pool.allocate(sum(sizes)) == list(range(sum(sizes)))


def test_small_gap_is_filled_before_a_long_run_is_cut() -> None:
    pool = BlockPool(10)
    first, _second, _rest = pool.allocate(2), pool.allocate(3), pool.allocate(1)
    pool.free(first)
    assert pool.allocate(2) == first


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks is 0"):
        BlockPool(0)
    with pytest.raises(ValueError, match="cannot allocate -1"):
        BlockPool(1).allocate(-1)
    assert isinstance(OutOfBlocks(1, 0, 1), TandemError)


def test_threads_never_share_a_block() -> None:
    pool = BlockPool(64)
    owner: list[int | None] = [None] * 64
    shared: list[int] = []

    def work(me: int) -> None:
        for i in range(400):
            try:
                ids = pool.allocate(1 + (i * 7 + me) % 13)
            except OutOfBlocks:
                continue
            for block in ids:
                if owner[block] is not None:
                    shared.append(block)
                owner[block] = me
            for block in ids:
                if owner[block] != me:
                    shared.append(block)
                owner[block] = None
            pool.free(ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared == []
    assert pool.free_count == 64
