"""Traces, what an oracle makes of them, and how times are summed up."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import TandemError
from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored
from tandem.simulation.oracle import SharedView, oracle_hit_rate
from tandem.simulation.results import Distribution, balance
from tandem.simulation.trace import TRACE_BLOCK, VOCAB_SIZE, Arrival, TraceLine, arrivals, read_trace

TRACE = Path(__file__).parents[3] / "loadtest" / "traces" / "mooncake_conversation_trace.jsonl"


def line(at_ms: float, names: list[int], cut: int = 0) -> TraceLine:
    return TraceLine(timestamp=at_ms, input_length=TRACE_BLOCK * len(names) - cut, output_length=10, hash_ids=names)


def test_the_checked_in_trace_is_read_whole() -> None:
    lines = read_trace(TRACE)
    assert len(lines) == 12_031
    assert sum(x.input_length for x in lines) / len(lines) == pytest.approx(12_035, abs=1)
    assert all(-(-x.input_length // TRACE_BLOCK) == len(x.hash_ids) for x in lines)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}\n{"timestamp": 1}\n')
    with pytest.raises(TandemError, match=r"t.jsonl, line 2: .*input_length"):
        read_trace(path)


def test_prompts_are_alike_where_the_trace_says_so() -> None:
    one, other = arrivals([line(0, [3, 4, 200_000], cut=100), line(5, [3, 4, 5])])
    assert len(one.prompt()) == one.num_tokens == 3 * TRACE_BLOCK - 100
    assert one.prompt()[: 2 * TRACE_BLOCK] == other.prompt()[: 2 * TRACE_BLOCK]
    assert one.prompt()[2 * TRACE_BLOCK :][:3] != other.prompt()[2 * TRACE_BLOCK :][:3]
    assert (len(one.hashes), len(other.hashes)) == (2, 3)
    assert one.hashes.tolist() == other.hashes[:2].tolist()
    assert all(0 <= token < VOCAB_SIZE for token in one.prompt())


def test_traffic_is_faster_longer_and_more_as_asked_for() -> None:
    lines = [line(1000.0 * i, [i]) for i in range(11)]
    assert [a.at for a in arrivals(lines, speed=2.0)] == [i / 2 for i in range(11)]
    many = arrivals(lines, copies=2, repeats=3)
    assert len(many) == len({a.request_id for a in many}) == len({a.blocks for a in many}) == 66
    assert [a.at for a in many] == sorted(a.at for a in many)
    assert 29 < many[-1].at <= 30


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), max_size=30))
def test_an_oracle_without_bounds_finds_all_that_has_been_there(prompts: list[list[int]]) -> None:
    """Against all prefixes seen so far; names are chained, as in a trace."""
    traffic = [
        Arrival(float(i), f"{i}", TRACE_BLOCK * len(p), 1, tuple(hash(tuple(p[: j + 1])) for j in range(len(p))))
        for i, p in enumerate(prompts)
    ]
    seen: set[int] = set()
    hits = 0
    for arrival in traffic:
        found = next((i for i, name in enumerate(arrival.blocks) if name not in seen), len(arrival.blocks))
        hits += min(found, len(arrival.blocks) - 1)  # the last token, and so its block, is always read
        seen.update(arrival.blocks)
    total = sum(len(p) for p in prompts)
    assert oracle_hit_rate(traffic, 10_000) == pytest.approx(hits / total if total else 0.0)


def test_an_oracle_forgets_what_was_used_least_recently() -> None:
    def prompt(name: int) -> Arrival:
        return Arrival(0.0, "", TRACE_BLOCK + 1, 1, (name, -1))

    assert oracle_hit_rate([prompt(1), prompt(2), prompt(1), prompt(3), prompt(1)], 2) > 0
    assert oracle_hit_rate([prompt(1), prompt(2), prompt(3), prompt(1)], 2) == 0


def test_a_distribution_is_right_to_a_percent() -> None:
    rng = random.Random(0)
    times = [rng.lognormvariate(-3, 1.5) for _ in range(5000)]
    distribution = Distribution()
    for seconds in times:
        distribution.add(seconds)
    distribution.add(0.0, count=0)
    summary = distribution.summary()
    assert (summary.count, summary.mean) == (5000, pytest.approx(np.mean(times)))
    assert summary.p50 == pytest.approx(np.percentile(times, 50), rel=0.02)
    assert summary.p99 == pytest.approx(np.percentile(times, 99), rel=0.02)


def test_balance_is_the_busiest_over_the_mean() -> None:
    assert balance([1.0, 1.0, 4.0]) == 2.0
    assert balance([0.0, 0.0]) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(1, 6)), max_size=40), st.integers(1, 5000))
def test_all_caches_as_one_hold_what_any_of_them_holds(changes: list[tuple[bool, int, int]], num_tokens: int) -> None:
    """Three workers store and remove the beginnings of one chain, against a set for each."""
    view, held, chain = (
        SharedView(),
        [set[int]() for _ in range(3)],
        pack_hashes(list(range(10, 10 + num_tokens // 512))),
    )
    for stores, worker, count in changes:
        names = {int(name) for name in chain[:count]}
        names = names - held[worker] if stores else held[worker] - names
        held[worker] = held[worker] | names if stores else held[worker] - names
        view.take([(BlocksStored if stores else BlocksRemoved)(hashes=sorted(names))])
    anywhere = set.union(*held)
    assert view.size == len(anywhere)
    found = list(itertools.takewhile(anywhere.__contains__, chain.tolist()))
    assert view.find(chain, num_tokens) == TRACE_BLOCK * min(len(found), (num_tokens - 1) // TRACE_BLOCK)
