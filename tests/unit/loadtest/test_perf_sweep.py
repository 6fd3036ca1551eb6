"""perf_analyzer's raw times as times to first token and between tokens."""

from __future__ import annotations

import msgspec
import pytest
from perf import PerfError
from perf_sweep import read_profile

MS = 1_000_000


def _export(*requests: tuple[int, list[int]]) -> bytes:
    found = [{"timestamp": at * MS, "response_timestamps": [t * MS for t in times]} for at, times in requests]
    return msgspec.json.encode({"experiments": [{"experiment": {"mode": "concurrency"}, "requests": found}]})


def test_times_are_read() -> None:
    point = read_profile(_export((0, [100, 110, 130]), (500, [600, 1000])), "llm", "rate", 2.0)
    assert (point.requests, point.requests_per_s, point.responses_per_s) == (2, 2.0, 5.0)
    assert point.ttft.p50 == pytest.approx(0.1)
    assert point.inter_token.mean == pytest.approx((0.01 + 0.02 + 0.4) / 3)
    assert point.latency.most == pytest.approx(0.5)


def test_no_answer_is_an_error() -> None:
    with pytest.raises(PerfError, match="llm, rate 2: no request was answered"):
        read_profile(_export((0, [])), "llm", "rate", 2.0)
