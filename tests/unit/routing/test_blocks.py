"""The tables of the prefix index, against dicts: names that want the same rows, more of them than rows, workers beyond
the first number of bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored, KvReport
from tandem.routing.blocks import FEWEST_ROWS, BlockTable, store
from tandem.routing.index import PrefixIndex

NAMES = [0, 2**64 - 1, *(FEWEST_ROWS * number for number in range(1, 40)), *range(1, 40)]
"""Of the smallest table half want the first row, and the last row's follow on to it."""
PLACES = (0, 63, 64, 130)
PLACE = st.sampled_from(PLACES)
SOME = st.lists(st.sampled_from(NAMES), unique=True, max_size=30)


class Blocks(RuleBasedStateMachine):
    """What each worker has reported, and until when it is expected to report others."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.now = 0.0

    @initialize()
    def begin(self) -> None:
        self.reported: dict[int, set[int]] = {place: set() for place in PLACES}
        self.expected: dict[int, dict[int, float]] = {place: {} for place in PLACES}
        while self.index.add() < PLACES[-1]:
            pass
        for place in PLACES:
            self.index.begin(place, 1)
            self.index.take(place, 1, KvReport(first=1, events=[]))

    def take(self, place: int, event: BlocksStored | BlocksRemoved, *, snapshot: bool = False) -> None:
        self.index.take(place, 1, KvReport(first=self.index.next_number(place), events=[event], is_snapshot=snapshot))

    @rule(place=PLACE, names=SOME)
    def store(self, place: int, names: list[int]) -> None:
        self.take(place, BlocksStored(hashes=names))
        self.reported[place] |= set(names)
        for name in names:
            self.expected[place].pop(name, None)

    @rule(place=PLACE, names=SOME)
    def remove(self, place: int, names: list[int]) -> None:
        self.take(place, BlocksRemoved(hashes=names))
        self.reported[place] -= set(names)
        for name in names:
            self.expected[place].pop(name, None)

    @rule(place=PLACE, names=SOME)
    def take_a_snapshot(self, place: int, names: list[int]) -> None:
        self.take(place, BlocksStored(hashes=names), snapshot=True)
        self.reported[place] = set(names)
        for name in names:
            self.expected[place].pop(name, None)

    @rule(place=PLACE, names=SOME)
    def give(self, place: int, names: list[int]) -> None:
        self.index.give(place, pack_hashes(names), 0, self.now, self.now + 3.0)
        for name in set(names) - self.reported[place]:
            self.expected[place][name] = self.now + 3.0

    @rule()
    def wait(self) -> None:
        self.now += 1.0
        self.index.expire(self.now)
        for expected in self.expected.values():
            for name in [name for name, until in expected.items() if until <= self.now]:
                del expected[name]

    @rule(place=PLACE)
    def restart(self, place: int) -> None:
        self.index.begin(place, 1)
        self.reported[place], self.expected[place] = set(), {}
        self.index.take(place, 1, KvReport(first=1, events=[]))

    @invariant()
    def every_block_is_where_it_should_be(self) -> None:
        both = {place: self.reported[place] | self.expected[place].keys() for place in PLACES}
        assert len(self.index) == len(set().union(*both.values()))
        for name in NAMES:
            one, holders = pack_hashes([name]), [place for place in PLACES if name in both[place]]
            counts = self.index.held(one).counts
            assert counts.nonzero()[0].tolist() == holders
            assert (counts[holders] == 1).all()
            for place in holders:
                assert self.index.reported(place, one, 1) == (name in self.reported[place])


class TestBlocks(Blocks.TestCase):  # type: ignore[name-defined,misc]
    pass


@given(st.integers(1, 500))
def test_half_of_the_rows_at_most_are_taken(count: int) -> None:
    holders, own = BlockTable(width=2), BlockTable()
    for name in range(count):
        for table in (holders, own):
            table.make_room(1)
        new_blocks, new_rows = store(holders.rows, own.rows, pack_hashes([name << 40]), 0, 0.0)
        holders.taken, own.taken = holders.taken + new_blocks, own.taken + new_rows
    for table in (holders, own):
        assert table.taken == count == np.count_nonzero(table.rows[:, 0])
        assert 2 * count <= len(table.rows) < max(FEWEST_ROWS + 1, 8 * count)


def test_a_worker_that_has_a_block_twice_counts_once() -> None:
    holders, own = BlockTable(width=2), BlockTable()
    assert store(holders.rows, own.rows, pack_hashes([5, 5]), 0, 0.0) == (1, 1)
    assert store(holders.rows, own.rows, pack_hashes([5]), 0, 1.0) == (0, 0)
