"""The prefix cache against a model that remembers what was written into each block."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tandem.kv import prefix_cache
from tandem.kv.blocks import OutOfBlocks
from tandem.kv.hashes import hash_block, hash_blocks
from tandem.kv.leases import LeaseTable
from tandem.kv.prefix_cache import Chain, PrefixCache
from tandem.messages import BlocksRemoved, BlocksStored

SIZE = 2
"""Tokens per block."""
Content = tuple[str, tuple[int, ...]]
"""What decides a block's KV: the salt, and all tokens up to the block's end."""


class Holder:
    """A sequence with its blocks, or a lease on them."""

    def __init__(self, salt: str, tokens: list[int], pool: PrefixCache, num_blocks: int, *, keeps: bool = True) -> None:
        self.salt, self.tokens = salt, tokens
        self.chain = Chain(tokens, SIZE, salt, keeps=keeps)
        self.blocks, self.stored = pool.reserve(self.chain, num_blocks, (len(tokens) - 1) // SIZE)

    def content(self, i: int) -> Content:
        return self.salt, tuple(self.tokens[: SIZE * (i + 1)])


class CacheAgainstModel(RuleBasedStateMachine):
    """Sequences over few tokens, so that many begin alike; ``weak_names`` gives different texts the same name."""

    weak_names = False

    @initialize(blocks=st.integers(4, 16))
    def start(self, blocks: int) -> None:
        self.pool = PrefixCache(blocks)
        self.holders: list[Holder] = []
        self.written: dict[int, Content | None] = {}
        """What each block that was ever used holds."""
        self.names: dict[int, Content] = {}
        """By what the changes say."""
        self.idle: list[int] = []
        """Blocks that keep their content with no holder, in the order in which they lost it."""
        self.spare: set[int] = set()
        """Blocks that none of those who had them was to keep."""

    @rule(
        salt=st.sampled_from(["", "tenant"]),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        more=st.integers(0, 5),
        keeps=st.booleans(),
    )
    def reserve(self, salt: str, tokens: list[int], more: int, keeps: bool) -> None:
        needed = -(-(len(tokens) + more) // SIZE)
        free = self.pool.num_blocks - len(self.held())
        cached = self.pool.cached
        try:
            holder = Holder(salt, tokens, self.pool, needed, keeps=keeps)
        except OutOfBlocks:
            assert needed > free - cached, "refused, though there was room without any sharing"
            assert self.pool.used == len(self.held())
            return
        shared, fresh = holder.blocks[: holder.stored], holder.blocks[holder.stored :]
        assert len(set(holder.blocks)) == needed
        for i, block in enumerate(shared):
            assert self.written[block] == holder.content(i), "KV of another text"
        assert not self.held() & set(fresh), "a block in two hands"
        self.idle = [block for block in self.idle if block not in shared]
        if keeps:
            self.spare -= set(shared)
        else:
            self.spare_end(shared)
        self.check_eviction([block for block in fresh if block in self.idle])
        self.written.update(dict.fromkeys(fresh))
        self.holders.append(holder)

    def check_eviction(self, evicted: list[int]) -> None:
        """Only when nothing else is free, and those that come first."""
        if evicted:
            assert self.pool.free_count == self.pool.cached
        assert set(evicted) == set(self.in_order()[: len(evicted)])
        self.idle = [block for block in self.idle if block not in evicted]
        self.spare -= set(evicted)

    def in_order(self) -> list[int]:
        """Idle blocks, the next to be evicted first."""
        return sorted(self.idle, key=lambda block: block not in self.spare)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """Write the KV of some more blocks, and store them."""
        holder = data.draw(st.sampled_from(self.holders))
        whole = min(len(holder.tokens) // SIZE, len(holder.blocks))
        if whole <= holder.stored:
            return
        end = data.draw(st.integers(holder.stored + 1, whole))
        for i in range(holder.stored, end):
            assert self.pool.holders(holder.blocks[i]) == 1, "written to a shared block"
            self.written[holder.blocks[i]] = holder.content(i)
        before = list(holder.blocks)
        self.pool.store(holder.chain, holder.blocks, holder.stored, end)
        for i, block in enumerate(holder.blocks[:end]):
            assert self.written[block] == holder.content(i)
        self.idle = [b for b in self.idle if b not in holder.blocks]
        assert before[: holder.stored] == holder.blocks[: holder.stored]
        new = {b for b, a in zip(before[holder.stored : end], holder.blocks[holder.stored :], strict=False) if a == b}
        if holder.chain.keeps:
            self.spare -= set(holder.blocks)
        else:
            self.spare |= new
        holder.stored = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        if len(holder.tokens) < SIZE * len(holder.blocks):
            holder.tokens.append(token)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.free(holder.blocks)
        held = self.held()
        for block in set(holder.blocks) - held:
            with pytest.raises(ValueError, match=f"block {block} is not in use"):
                self.pool.free([*held, block])
        self.idle += [block for block in reversed(holder.blocks[: holder.stored]) if block not in held]

    @rule(salt=st.sampled_from(["", "tenant"]), tokens=st.lists(st.integers(0, 1), min_size=SIZE, max_size=9))
    def lend(self, salt: str, tokens: list[int]) -> None:
        """What goes elsewhere is spare but for what others hold, and what comes before a block that is not spare."""
        chain = Chain(tokens, SIZE, salt)
        lent, _ = self.pool.lend([chain[i][0] for i in range(len(tokens) // SIZE)], salt)
        self.pool.make_spare(lent)
        self.pool.free(lent)
        held = self.held()
        self.idle = [b for b in self.idle if b not in lent] + [b for b in reversed(lent) if b not in held]
        self.spare_end(lent)

    def spare_end(self, blocks: list[int]) -> None:
        held, named = self.held(), self.pool._by_block
        for block in reversed(blocks):
            after = {kept.block for kept in named.values() if kept.before == named[block].serial}
            if block in held or after - self.spare:
                break
            self.spare.add(block)

    def forget_lost_names(self) -> None:
        """Where texts share names, a block can lose its own to another one, and is no longer kept."""
        if self.weak_names:
            self.idle = [block for block in self.idle if block in self.pool._by_block]
            self.spare &= self.pool._by_block.keys()

    def held(self) -> set[int]:
        return {block for holder in self.holders for block in holder.blocks}

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = self.held()
        for block in range(self.pool.num_blocks):
            assert self.pool.holders(block) == sum(block in holder.blocks for holder in self.holders)
        assert self.pool.used == len(held)
        assert self.pool.free_count == self.pool.num_blocks - len(held)
        self.forget_lost_names()
        assert [*self.pool._cached_spare, *self.pool._cached] == self.in_order()
        assert self.pool._spare == self.spare

    @invariant()
    def changes_say_what_is_there(self) -> None:
        if not hasattr(self, "pool"):
            return
        for change in self.pool.take_changes():
            for name in change.hashes:
                if isinstance(change, BlocksStored):
                    assert name not in self.names, "stored twice"
                    self.names[name] = ("", ())
                else:
                    del self.names[name]
        assert self.names.keys() == self.pool._by_name.keys()

    @invariant()
    def heads_outlive_tails(self) -> None:
        """Whatever is there can be found: all that comes before it is there too."""
        if not hasattr(self, "pool") or self.weak_names:
            return
        there = {self.written[block] for block in self.pool._by_block}
        for salt, tokens in filter(None, there):
            assert len(tokens) == SIZE or (salt, tokens[:-SIZE]) in there

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for holder in self.holders:
                self.pool.free(holder.blocks)
            assert self.pool.free_count == self.pool.num_blocks
            assert sorted(self.pool.allocate(self.pool.num_blocks)) == list(range(self.pool.num_blocks))
            assert self.pool.cached == 0


class WeakNames(CacheAgainstModel):
    """Four names for all texts: found is still only what is right."""

    weak_names = True

    @initialize(blocks=st.integers(4, 16))
    def start(self, blocks: int) -> None:
        super().start(blocks)
        self.real = prefix_cache.hash_block
        prefix_cache.hash_block = lambda *name: hash_block(*name) % 4  # type: ignore[assignment]

    def teardown(self) -> None:
        if hasattr(self, "real"):
            prefix_cache.hash_block = self.real  # type: ignore[assignment]
        super().teardown()


CacheAgainstModel.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
WeakNames.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestCacheAgainstModel = CacheAgainstModel.TestCase
TestWeakNames = WeakNames.TestCase


def read(pool: PrefixCache, tokens: list[int], salt: str = "", *, keeps: bool = True) -> Holder:
    """A sequence whose whole blocks are computed and stored."""
    holder = Holder(salt, tokens, pool, -(-len(tokens) // SIZE), keeps=keeps)
    pool.store(holder.chain, holder.blocks, holder.stored, len(tokens) // SIZE)
    return holder


def shared(pool: PrefixCache, tokens: list[int], salt: str = "") -> int:
    """Blocks that a sequence finds; it ends at once."""
    holder = Holder(salt, tokens, pool, -(-len(tokens) // SIZE))
    pool.free(holder.blocks)
    return holder.stored


@pytest.fixture
def pool() -> Iterator[PrefixCache]:
    pool = PrefixCache(10)
    yield pool
    assert pool.used == 0


def test_names_are_those_of_the_router() -> None:
    tokens = list(range(10))
    chain = Chain(tokens, 3, "salt")
    assert [chain[i][0] for i in (2, 0, 1)] == [hash_blocks(tokens, 3, "salt")[i] for i in (2, 0, 1)]
    tokens += [1, 2]
    assert chain[3][0] == hash_blocks(tokens, 3, "salt")[3]
    assert Chain(tokens, 3, "")[0][0] != chain[0][0]


def test_tenants_share_nothing(pool: PrefixCache) -> None:
    pool.free(read(pool, [1, 2, 3, 4, 5], "a").blocks)
    assert (shared(pool, [1, 2, 3, 4, 5], "a"), shared(pool, [1, 2, 3, 4, 5], "b")) == (2, 0)


def test_twins_end_with_the_same_blocks(pool: PrefixCache) -> None:
    """Two sequences that were computed side by side: one copy stays, held by both."""
    first, second = (Holder("", [1, 2, 3, 4, 5], pool, 3) for _ in range(2))
    assert pool.used == 6
    for holder in (first, second):
        pool.store(holder.chain, holder.blocks, 0, 2)
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]
    assert pool.used == 4
    pool.free(first.blocks)
    assert (pool.used, pool.cached) == (3, 0)
    pool.free(second.blocks)
    assert (pool.used, pool.cached) == (0, 2)


def test_a_lease_and_a_sequence_share_blocks(pool: PrefixCache) -> None:
    """Each holds them by itself; a lease on blocks that nobody else gave to it is refused."""
    leases = LeaseTable(pool, 10.0, lambda: 0.0)
    first = read(pool, [1, 2, 3, 4, 5])
    lease = leases.grant("a", first.blocks)
    with pytest.raises(ValueError, match="under lease already"):
        leases.grant("a", first.blocks)
    second = read(pool, [1, 2, 3, 4, 6])
    assert second.blocks[:2] == first.blocks[:2]
    other = leases.grant("b", second.blocks)
    leases.confirm(lease)
    assert pool.used == 3
    leases.confirm(other)
    assert pool.cached == 2


def test_free_blocks_come_before_cached_ones(pool: PrefixCache) -> None:
    pool.free(read(pool, [1, 2, 3, 4]).blocks)
    pool.free(pool.allocate(8))
    assert pool.cached == 2
    pool.free(pool.allocate(9))
    assert pool.cached == 1
    assert shared(pool, [1, 2, 3, 4, 5]) == 1


def test_allocations_stay_runs_where_there_is_one(pool: PrefixCache) -> None:
    pool.free(read(pool, list(range(20))).blocks)
    assert (pool.cached, pool.allocate(5)) == (10, [5, 6, 7, 8, 9])
    pool.free([5, 6, 7, 8, 9])


def test_what_is_used_again_stays(pool: PrefixCache) -> None:
    pool.free(read(pool, [1, 1, 0]).blocks)
    pool.free(read(pool, [2, 2, 0]).blocks)
    assert shared(pool, [1, 1, 0]) == 1
    pool.free(pool.allocate(9))
    assert (shared(pool, [1, 1, 0]), shared(pool, [2, 2, 0])) == (1, 0)


def test_what_another_worker_keeps_is_given_up_first(pool: PrefixCache) -> None:
    pool.free(read(pool, [1, 1, 0]).blocks)
    pool.free(read(pool, [2, 2, 0], keeps=False).blocks)
    pool.take_changes()
    pool.free(pool.allocate(9))
    assert (shared(pool, [1, 1, 0]), shared(pool, [2, 2, 0])) == (1, 0)
    assert pool.take_changes() == [BlocksRemoved(hashes=hash_blocks([2, 2], SIZE, ""), spare=True)]
    pool.free(pool.allocate(10))
    assert pool.take_changes() == [BlocksRemoved(hashes=hash_blocks([1, 1], SIZE, ""))]


@pytest.mark.parametrize("keeps", [True, False])
def test_who_had_a_block_last_says_whether_it_is_kept(pool: PrefixCache, keeps: bool) -> None:
    for each in (not keeps, keeps):
        pool.free(read(pool, [1, 1, 0], keeps=each).blocks)
    pool.free(read(pool, [2, 2, 0], keeps=not keeps).blocks)
    pool.free(pool.allocate(9))
    assert (shared(pool, [1, 1, 0]), shared(pool, [2, 2, 0])) == (int(keeps), int(not keeps))


def test_a_block_that_is_kept_stays_so_beside_one_that_does_not_keep_it(pool: PrefixCache) -> None:
    first, second = (read(pool, [1, 1, 0], keeps=keeps) for keeps in (True, False))
    for holder in (first, second):
        pool.free(holder.blocks)
    pool.free(read(pool, [2, 2, 0], keeps=False).blocks)
    pool.free(pool.allocate(9))
    assert (shared(pool, [1, 1, 0]), shared(pool, [2, 2, 0])) == (1, 0)


def test_what_was_lent_is_spare_up_to_where_others_follow(pool: PrefixCache) -> None:
    """Two prompts that begin alike; the second one goes elsewhere."""
    first, second = read(pool, [1, 1, 2, 2, 0]), read(pool, [1, 1, 3, 3, 0])
    names = hash_blocks([1, 1, 3, 3], SIZE, "")
    for holder in (second, first):
        pool.free(holder.blocks)
        lent, _ = pool.lend(names, "")
        pool.make_spare(lent)
        pool.free(lent)
    pool.take_changes()
    pool.free(pool.allocate(8))
    assert pool.take_changes() == [BlocksRemoved(hashes=names[1:], spare=True)]
    assert (shared(pool, [1, 1, 2, 2, 0]), shared(pool, [1, 1, 3, 3, 0])) == (2, 1)


def test_a_chain_that_was_torn_is_found_when_it_is_whole_again(pool: PrefixCache) -> None:
    """A holder that frees its head first leaves a tail that nobody can find, until the head is there again."""
    holder = read(pool, [1, 2, 3, 4])
    pool.free(holder.blocks[:1])
    pool.free(holder.blocks[1:])
    pool.free(pool.allocate(9))
    assert (pool.cached, shared(pool, [1, 2, 3, 4, 5])) == (1, 0)
    pool.free(read(pool, [1, 2, 3, 4, 5]).blocks)
    assert (pool.cached, shared(pool, [1, 2, 3, 4, 5])) == (2, 2)


def test_switched_off_it_keeps_nothing() -> None:
    pool = PrefixCache(10, enabled=False)
    pool.free(read(pool, [1, 2, 3, 4, 5]).blocks)
    assert (pool.cached, shared(pool, [1, 2, 3, 4, 5]), pool.take_changes()) == (0, 0, [])


def test_pinned_blocks_are_not_handed_out_by_eviction(pool: PrefixCache) -> None:
    holder = Holder("", [1, 2, 3, 4, 5], pool, 3)
    pool.pin(holder.blocks)
    pool.free(holder.blocks)
    assert (pool.free_count, pool.used) == (7, 3)
    with pytest.raises(OutOfBlocks):
        pool.allocate(8)
    pool.unpin(holder.blocks)
    assert pool.free_count == 10


def test_threads_may_free_while_another_one_reserves(pool: PrefixCache) -> None:
    """As leases do, which end in the transfer's thread."""
    done: list[list[int]] = []
    stop = threading.Event()

    def free() -> None:
        while not stop.is_set() or done:
            if done:
                pool.free(done.pop())

    thread = threading.Thread(target=free)
    thread.start()
    for i in range(3000):
        try:
            done.append(read(pool, [i % 3, i % 2, i % 5, 1, 1]).blocks)
        except OutOfBlocks:
            continue
    stop.set()
    thread.join()
