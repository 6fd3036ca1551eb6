"""Figures from records: percentiles, goodput under an SLO, what counts as what."""

from __future__ import annotations

import pytest
from live.stats import Slo, figures, keeps, summarise

from tests.unit.loadtest.records import record

SLO = Slo(ttft_s=0.5, inter_token_p99_s=0.1)


def test_percentiles_lie_between_neighbours() -> None:
    times = summarise(n / 100 for n in range(101))
    assert (times.count, times.p50, times.p90, times.p99, times.most) == pytest.approx((101, 0.5, 0.9, 0.99, 1.0))
    assert times.mean == pytest.approx(0.5)
    assert summarise([]).count == 0


def test_a_request_is_good_only_where_it_is_whole_and_all_of_it_was_in_time() -> None:
    assert keeps(record(), SLO)
    assert keeps(record(ttft=0.5, gaps=[0.1]), SLO), "the limit itself is allowed"
    assert keeps(record(tokens=1, gaps=[]), SLO), "one token has no gaps"
    assert not keeps(record(ttft=0.501), SLO)
    assert not keeps(record(ttft=None), SLO)
    assert not keeps(record(error="[overloaded] …", finish=""), SLO)
    assert not keeps(record(finish="left"), SLO)
    assert not keeps(record(finish="cancelled"), SLO)


def test_one_slow_token_in_a_hundred_is_forgiven_and_two_are_not() -> None:
    assert keeps(record(gaps=[0.01] * 200 + [9.0]), SLO)
    assert not keeps(record(gaps=[0.01] * 97 + [9.0] * 3), SLO)


def test_a_round_counts_each_request_once() -> None:
    records = [
        record(),
        record(ttft=2.0),
        record(finish="left", tokens=1),
        record(finish="", error="[overloaded] 256 requests in hand", ttft=None, gaps=[], tokens=0),
        record(finish="", error="HttpError: the connection ended", ttft=None, gaps=[], tokens=0),
    ]
    found = figures(records, SLO, seconds=2.0)
    assert (found.requests, found.finished, found.left) == (5, 2, 1)
    assert found.errors == {"overloaded": 1, "HttpError: the connection ended": 1}
    assert found.requests_per_s == 1.0
    assert found.tokens_per_s == 3.5
    assert found.goodput_per_s == 0.5
    assert found.good_share == 0.25, "who left was not failed by the server"
    assert found.hit_rate == pytest.approx(0.4)
    assert found.ttft.count == 3
