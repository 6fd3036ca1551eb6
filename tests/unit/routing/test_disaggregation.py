"""Which way a request goes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.routing.disaggregation import Split, Whole, choose_way, crowding

SECONDS = st.floats(0, 100)


def split(prefill_s: float = 0.0, held_up_s: float = 0.0, transfer_s: float = 0.0, decode_s: float = 0.0) -> Split:
    return Split(prefill_s=prefill_s, held_up_s=held_up_s, transfer_s=transfer_s, decode_s=decode_s)


def whole(prefill_s: float = 0.0, stall_s: float = 0.0, decode_s: float = 0.0) -> Whole:
    return Whole(prefill_s=prefill_s, stall_s=stall_s, decode_s=decode_s)


@given(st.builds(split, SECONDS, SECONDS, SECONDS, SECONDS), st.builds(whole, SECONDS, SECONDS, SECONDS))
def test_the_way_that_takes_less_is_taken(two: Split, one: Whole) -> None:
    verdict = choose_way(two, one)
    taken, other = (one.total_s, two.total_s) if verdict.way == "whole" else (two.total_s, one.total_s)
    assert taken <= other
    assert f"{1e3 * two.total_s:.1f} ms" in verdict.reason


def test_equal_ways_are_taken_apart() -> None:
    assert choose_way(split(1.0), whole(1.0)).way == "split"


def test_the_only_way_is_taken() -> None:
    assert choose_way(None, whole(9.0)).way == "whole"
    assert choose_way(split(9.0), None).way == "split"
    with pytest.raises(ValueError, match="no worker"):
        choose_way(None, None)


def test_the_fuller_a_worker_is_the_more_are_held_up_by_what_it_reads() -> None:
    """Half full hardly matters; a worker that is fuller than full still has a price."""
    shares = [0.0, 0.5, 0.8, 0.9, 0.95, 1.0, 3.0]
    prices = [crowding(share) for share in shares]
    assert prices == sorted(prices)
    assert prices[0] == 1.0
    assert prices[1] < 1.1
    assert prices[4] > 5.0
    assert prices[5] == prices[6] < math.inf
