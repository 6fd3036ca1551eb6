"""A trace as requests for a live server: times, lengths, and prompts that begin alike where the trace says so."""

from __future__ import annotations

import pytest
from live.engines import find_engine
from live.schedule import block_tokens, prefill_load, schedule

from tandem.engines.sim.timing import prefill_pairs, step_s
from tandem.simulation.trace import TRACE_BLOCK, TraceLine

LINES = [
    TraceLine(5000.0, 1000, 500, [0, 1]),
    TraceLine(5000.0, 1024, 3, [0, 2]),
    TraceLine(9000.0, 1500, 0, [0, 1, 3]),
]


def test_times_are_compressed_and_answers_cut() -> None:
    due = schedule(LINES, speed=8, most_answer=32, vocab_size=49_152, context=8192)
    assert [one.at for one in due] == [0.0, 0.0, 0.5]
    assert [one.max_tokens for one in due] == [32, 3, 1]
    assert [len(one.prompt) for one in due] == [1000, 1024, 1500]


def test_prompts_are_alike_as_far_as_the_trace_says() -> None:
    first, second, third = (one.prompt for one in schedule(LINES, speed=1, most_answer=32, vocab_size=99, context=8192))
    assert first[:TRACE_BLOCK] == second[:TRACE_BLOCK] == third[:TRACE_BLOCK]
    assert first[TRACE_BLOCK] == second[TRACE_BLOCK], "both names have one digit"
    assert first[TRACE_BLOCK : TRACE_BLOCK + 2] != second[TRACE_BLOCK : TRACE_BLOCK + 2]
    assert first == third[:1000]


def test_a_prompt_that_does_not_fit_is_cut() -> None:
    (due,) = schedule(LINES[:1], speed=1, most_answer=32, vocab_size=99, context=600)
    assert len(due.prompt) == 568


@pytest.mark.parametrize("vocab_size", [10, 49_152])
def test_every_block_has_tokens_of_its_own(vocab_size: int) -> None:
    blocks = [tuple(block_tokens(name, vocab_size)) for name in range(2000)]
    assert len(set(blocks)) == len(blocks)
    assert {len(block) for block in blocks} == {TRACE_BLOCK}
    assert all(0 <= token < vocab_size for block in blocks for token in block)


def test_load_is_work_over_time() -> None:
    due = schedule(LINES, speed=1, most_answer=32, vocab_size=99, context=8192)
    timing = find_engine("h100-llama-3.1-8b", speed=2.0).prefill
    work = sum(step_s(timing, n, prefill_pairs(0, n), 0) for n in (1000, 1024, 1500))
    assert prefill_load(due, timing, 2) == pytest.approx(work / 2 / 4.0)


def test_a_long_prompt_takes_several_steps() -> None:
    line = TraceLine(0.0, 10_000, 1, list(range(20)))
    due = schedule([line, LINES[0]], speed=1, most_answer=1, vocab_size=49_152, context=131_072)
    timing = find_engine("mocker").prefill
    work = step_s(timing, 8192, 0, 0) + step_s(timing, 1808, 0, 0) + step_s(timing, 1000, 0, 0)
    assert prefill_load(due, timing, 1) == pytest.approx(work / 5.0)


def test_an_engine_twice_as_fast_takes_half_of_the_time() -> None:
    for name in ("mocker", "h100-llama-3.1-8b"):
        slow, fast = (step_s(find_engine(name, speed).prefill, 4096, 10**6, 0) for speed in (1.0, 2.0))
        assert fast == pytest.approx(slow / 2)


def test_the_mocker_takes_as_long_as_its_formula_says() -> None:
    for n, off in ((8192, 1e-6), (4096, 0.09), (1, 1e-3)):
        expected = 1e-3 * (4.209989e-07 * n**2 + 1.518344e-02 * n + 16.50142)
        taken = step_s(find_engine("mocker").prefill, n, prefill_pairs(50_000, n), 0)
        assert taken == pytest.approx(expected, rel=off)
