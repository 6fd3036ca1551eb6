"""The index knows what the workers hold, whatever becomes of their reports on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent, KvReport
from tandem.routing.index import PrefixIndex

WORKERS = 3
CHAINS = [[100 * chain + block for block in range(1, 9)] for chain in range(3)]
PLACES = st.integers(0, WORKERS - 1)
CHAINS.append([*CHAINS[0][:4], 901, 902, 903])  # shares its beginning
FOLLOWERS = {
    block: {after for d in CHAINS for before, after in pairwise(d) if before == block} for c in CHAINS for block in c
}


def held_by(blocks: set[int], chain: list[int]) -> int:
    """How much of a chain is there, counted one by one."""
    return next((n for n, block in enumerate(chain) if block not in blocks), len(chain))


def held(index: PrefixIndex, chain: list[int]) -> list[float]:
    """How much of a chain each worker holds, as the index has it."""
    return index.held(pack_hashes(chain)).counts.tolist()


@dataclass
class Cache:
    """A worker's prefix cache: all its changes, of which it can tell only those after ``dropped``."""

    epoch: int = 1
    changes: list[KvEvent] = field(default_factory=list)
    dropped: int = 0

    def blocks(self, changes: int) -> set[int]:
        """What it held after so many changes."""
        held: set[int] = set()
        for event in self.changes[:changes]:
            held = held | set(event.hashes) if isinstance(event, BlocksStored) else held - set(event.hashes)
        return held

    def report(self, since: int, most: int) -> KvReport | None:
        """Changes from number ``since`` on, at most so many; a snapshot where it cannot tell them any more."""
        if since <= self.dropped:
            everything = BlocksStored(hashes=list(self.blocks(len(self.changes))))
            return KvReport(first=len(self.changes), events=[everything], is_snapshot=True)
        events = self.changes[since - 1 :][:most]
        return KvReport(first=since, events=events) if events else None


class ReportsOnTheirWay(RuleBasedStateMachine):
    """Reports are lost, doubled, late and out of order; workers restart; logs are cut. At every moment the index knows
    what each worker held after the changes that it says it has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.caches = [Cache() for _ in range(WORKERS)]
        self.on_the_way: list[tuple[int, int, KvReport]] = []

    @initialize()
    def begin(self) -> None:
        for place in range(WORKERS):
            assert self.index.add() == place
            self.index.begin(place, 1)

    @rule(place=PLACES, chain=st.sampled_from(CHAINS), size=st.integers(1, 8))
    def store(self, place: int, chain: list[int], size: int) -> None:
        self.caches[place].changes.append(BlocksStored(hashes=chain[:size]))

    @rule(place=PLACES, chain=st.sampled_from(CHAINS), most=st.integers(1, 3))
    def remove(self, place: int, chain: list[int], most: int) -> None:
        """As caches do, from the end of a chain."""
        cache = self.caches[place]
        held, gone = cache.blocks(len(cache.changes)), list[int]()
        for block in reversed(chain):
            if block in held and len(gone) < most and not FOLLOWERS[block] & held - set(gone):
                gone.append(block)
        cache.changes.append(BlocksRemoved(hashes=gone))

    @rule(place=PLACES, keep=st.integers(0, 3))
    def cut_the_log(self, place: int, keep: int) -> None:
        cache = self.caches[place]
        cache.dropped = max(cache.dropped, len(cache.changes) - keep)

    @rule(place=PLACES)
    def restart(self, place: int) -> None:
        self.caches[place] = Cache(epoch=self.caches[place].epoch + 1)
        self.index.begin(place, self.caches[place].epoch)

    @rule(place=PLACES, ahead=st.integers(-3, 3), most=st.integers(1, 4))
    def send(self, place: int, ahead: int, most: int) -> None:
        """A report leaves: what is needed, or what is not, because others before it are on their way or lost."""
        cache = self.caches[place]
        if report := cache.report(max(1, self.index.next_number(place) + ahead), most):
            self.on_the_way.append((place, cache.epoch, report))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        """Any report arrives, and perhaps once more later."""
        number = data.draw(st.integers(0, len(self.on_the_way) - 1))
        place, epoch, report = self.on_the_way[number]
        self.index.take(place, epoch, report)
        if not again:
            del self.on_the_way[number]

    @rule()
    def lose_all(self) -> None:
        self.on_the_way.clear()

    @rule(place=PLACES)
    def ask(self, place: int) -> None:
        """Whoever asks for what it needs, and gets it, is up to date."""
        cache = self.caches[place]
        if report := cache.report(self.index.next_number(place), len(cache.changes)):
            self.index.take(place, cache.epoch, report)
        assert self.index.next_number(place) == len(cache.changes) + 1

    @invariant()
    def the_index_knows_what_it_says_it_knows(self) -> None:
        known = [c.blocks(self.index.next_number(place) - 1) for place, c in enumerate(self.caches)]
        assert len(self.index) == len(set().union(*known))
        for chain in CHAINS if len(self.index) else []:
            assert held(self.index, chain) == [held_by(blocks, chain) for blocks in known]


class TestReportsOnTheirWay(ReportsOnTheirWay.TestCase):  # type: ignore[name-defined,misc]
    pass


@given(st.lists(st.integers(0, 30), min_size=1, max_size=140), st.integers(0, 40))
def test_held_is_what_counting_one_by_one_gives(holdings: list[int], length: int) -> None:
    """Workers hold so much of a chain of 30 blocks; of one of 40 that begins alike."""
    index, chain = PrefixIndex(), list(range(40))
    for place, blocks in enumerate(holdings):
        index.add()
        index.begin(place, 1)
        index.take(place, 1, KvReport(first=1, events=[BlocksStored(hashes=chain[:blocks])]))
    asked = chain[:length]
    counted = [held_by(set(chain[:blocks]), asked) for blocks in holdings]
    assert held(index, asked) == counted
    found = index.held(pack_hashes(asked))
    assert found.most == max(counted)
    if found.most:
        assert all(counted[found.holder(turn)] == found.most for turn in range(8))


def test_those_who_hold_most_take_turns() -> None:
    index = PrefixIndex()
    for place in range(3):
        index.add()
        index.begin(place, 1)
        index.take(place, 1, report(1, BlocksStored(hashes=[1, 2] if place else [1])))
    found = index.held(pack_hashes([1, 2, 3]))
    assert found.most == 2
    assert {found.holder(turn) for turn in range(2)} == {1, 2}


@given(st.integers(0, 20), st.sets(st.integers(0, 20)))
def test_the_end_of_a_chain_that_is_yet_to_be_computed_is_not_reported(length: int, told: set[int]) -> None:
    index, chain = PrefixIndex(), list(range(20))
    index.add()
    index.begin(0, 1)
    index.take(0, 1, report(1))
    index.give(0, pack_hashes(chain[:length]), 0, 0.0, 5.0)
    begun = held_by(told, chain[:length])
    index.take(0, 1, report(1, BlocksStored(hashes=chain[:begun])))
    assert index.reported(0, pack_hashes(chain), length) == begun


@pytest.fixture
def index() -> PrefixIndex:
    """Of two workers."""
    index = PrefixIndex()
    for place in range(2):
        index.add()
        index.begin(place, 1)
    return index


def report(first: int, *events: KvEvent, snapshot: bool = False) -> KvReport:
    return KvReport(first=first, events=list(events), is_snapshot=snapshot)


def test_after_a_gap_the_missing_number_is_asked_for(index: PrefixIndex) -> None:
    index.take(0, 1, report(1, BlocksStored(hashes=[1])))
    index.take(0, 1, report(3, BlocksStored(hashes=[3])))
    assert index.next_number(0) == 2
    assert held(index, [1, 2, 3]) == [1, 0]
    index.take(0, 1, report(1, BlocksStored(hashes=[1]), BlocksStored(hashes=[2]), BlocksStored(hashes=[3])))
    assert index.next_number(0) == 4
    assert held(index, [1, 2, 3]) == [3, 0]


def test_a_snapshot_replaces_what_was_known(index: PrefixIndex) -> None:
    index.take(0, 1, report(1, BlocksStored(hashes=[1, 2])))
    index.take(0, 1, report(9, BlocksStored(hashes=[1, 5]), snapshot=True))
    assert index.next_number(0) == 10
    assert held(index, [1, 2]) == [1, 0]
    assert len(index) == 2
    index.take(0, 1, report(9, BlocksStored(hashes=[1]), snapshot=True))  # the same moment: not read twice
    assert held(index, [1, 5]) == [2, 0]


def test_a_new_epoch_forgets_and_an_old_one_is_not_heard(index: PrefixIndex) -> None:
    index.take(0, 1, report(1, BlocksStored(hashes=[1])))
    index.begin(0, 2)
    index.take(0, 1, report(1, BlocksStored(hashes=[1])))
    assert held(index, [1]) == [0, 0]
    assert index.next_number(0) == 1


def test_an_expected_block_counts_until_it_is_reported_or_too_late(index: PrefixIndex) -> None:
    index.take(0, 1, report(1, BlocksStored(hashes=[1])))
    index.give(0, pack_hashes([1, 2, 3]), 0, 0.0, 5.0)
    assert held(index, [1, 2, 3]) == [3, 0]
    index.take(0, 1, report(2, BlocksStored(hashes=[2])))
    index.expire(5.0)
    assert held(index, [1, 2, 3]) == [2, 0]


def test_an_expectation_that_is_renewed_lasts_longer(index: PrefixIndex) -> None:
    index.take(0, 1, report(1))
    index.give(0, pack_hashes([1]), 0, 0.0, 5.0)
    index.give(0, pack_hashes([1]), 0, 0.0, 7.0)
    index.expire(6.0)
    assert held(index, [1]) == [1, 0]
    index.expire(7.0)
    assert held(index, [1]) == [0, 0]


def test_a_snapshot_leaves_expectations(index: PrefixIndex) -> None:
    """It may be older than the request they come from."""
    index.take(0, 1, report(1, BlocksStored(hashes=[1])))
    index.give(0, pack_hashes([2]), 0, 0.0, 5.0)
    index.take(0, 1, report(4, BlocksStored(hashes=[1]), snapshot=True))
    assert held(index, [1, 2]) == [2, 0]


def test_nothing_is_expected_of_a_worker_that_does_not_report(index: PrefixIndex) -> None:
    index.give(1, pack_hashes([1]), 0, 0.0, 5.0)
    assert held(index, [1]) == [0, 0]
    index.expire(5.0)


def test_an_expectation_ends_with_its_epoch(index: PrefixIndex) -> None:
    index.take(0, 1, report(1))
    index.give(0, pack_hashes([1]), 0, 0.0, 5.0)
    index.begin(0, 2)
    assert held(index, [1]) == [0, 0]
    index.take(0, 2, report(1, BlocksStored(hashes=[1])))
    index.expire(9.0)
    assert held(index, [1]) == [1, 0]
