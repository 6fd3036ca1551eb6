"""Who may be chosen, and what the columns say."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.routing.table import Numbers, WorkerTable
from tests.unit.routing.sites import BATCH, BLOCKS, PREFILL_S, PULL_S, STEP_S, make_table, measured


def places(bar: Numbers | None) -> list[int]:
    return [] if bar is None else np.flatnonzero(bar == 0.0).tolist()


def test_workers_are_there_once_they_have_joined() -> None:
    table = WorkerTable()
    table.add("prefill_0", "prefill")
    table.add("decode_0", "decode")
    assert table.bar("prefill") is table.bar("decode") is table.paired_bar() is None
    table.join(0, BATCH, measured())
    assert places(table.bar("prefill")) == [0]
    assert table.bar("decode") is None
    assert table.deployed("decode") == ["decode_0"]


def test_only_pairs_share_a_request() -> None:
    table = make_table(2)
    table.lose(3)
    table.join(3, BATCH, measured())  # decode_1 is back, and has met nobody
    assert places(table.bar("decode")) == [2, 3]
    assert places(table.bar("decode", 0)) == [2]
    table.pair(3, 1)
    assert places(table.bar("decode", 1)) == [2, 3]
    table.drain(2)
    assert places(table.paired_bar()) == [1]
    table.lose(3)
    assert table.paired_bar() is None
    assert places(table.bar("prefill")) == [0, 1]


def test_columns_follow_what_is_in_hand() -> None:
    table = make_table(1)
    table.report(1, measured(running=BATCH - 1, blocks_used=BLOCKS // 2))
    booking = table.book(1, 300, BLOCKS // 4)
    assert table.in_hand[1] == BATCH
    assert table.batch_share[1] == pytest.approx((BATCH + 1) / BATCH)
    assert table.used_share[1] == pytest.approx(0.75)
    assert table.wait_s[1] == pytest.approx(300 * PREFILL_S)
    assert table.pull_s[1] == pytest.approx(PULL_S)
    assert table.step_s[0] == pytest.approx(STEP_S)  # measured with one in the batch, and there would be one
    booking.end()
    assert table.wait_s[1] == 0.0


def test_a_place_is_used_again_and_owes_nothing_to_who_had_it() -> None:
    table = make_table(1)
    booking = table.book(1, 300, BLOCKS // 4)
    names = table.names
    for number in range(1000):
        table.remove(1)
        assert table.bar("decode") is table.paired_bar() is None
        assert table.add(f"decode_{number}", "decode") == 1
        table.join(1, BATCH, measured())
    assert names == ["prefill_0", "decode_0"]  # as whoever kept them knows them
    assert table.names == ["prefill_0", "decode_999"]
    booking.end()
    assert table.in_hand.tolist() == table.wait_s.tolist() == [0.0, 0.0]
    assert table.paired_bar() is None
    table.pair(0, 1)
    assert places(table.paired_bar()) == [0]


def test_a_worker_for_both_stages_stands_for_each() -> None:
    table = make_table(1)
    place = table.add("both_0", "both")
    table.join(place, BATCH, measured())
    assert places(table.bar("prefill")) == [0, place]
    assert places(table.bar("decode")) == [1, place]
    table.pair(place, 1)
    table.pair(0, place)
    assert places(table.paired_bar()) == [0, place]
    assert places(table.bar("decode", 0)) == [1, place]
    assert places(table.bar("decode", place)) == [1]  # not itself
