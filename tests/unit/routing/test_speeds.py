"""Speeds from counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import Load
from tandem.routing.speeds import KNEE_TOKENS, MEMORY_S, Mean, PrefillSteps, Speeds


def test_a_mean_of_what_was_added() -> None:
    mean = Mean()
    assert not mean.known
    mean.add(2.0, 100, 0.001)
    mean.add(4.0, 100, 0.001)
    assert mean.value == pytest.approx(0.03, rel=1e-3)


def test_what_is_long_ago_fades() -> None:
    mean = Mean()
    mean.add(1000.0, 1000, 10.0)
    for _ in range(100):
        mean.add(20.0, 10, MEMORY_S / 10)
    assert mean.value == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (-5, 1.0), (5, 0.0), (5, -1.0)])
def test_nothing_done_measures_nothing(count: int, seconds: float) -> None:
    mean = Mean()
    mean.add(1.0, count, seconds)
    assert not mean.known


def test_steps_of_several_sizes_tell_what_a_token_takes() -> None:
    steps = PrefillSteps()
    assert not steps.known
    for tokens in (10, 2000, 300, 50, 1000, 10):
        steps.add(3 * 0.02 + 0.001 * tokens, tokens, 3)
    assert steps.more_s == pytest.approx(0.001, rel=0.05)
    assert steps.token_s > steps.more_s


@given(st.integers(1, 3000), st.integers(1, 10**6), st.floats(1e-3, 10.0))
def test_steps_that_are_alike_are_believed_to_have_a_part_that_is_always_there(
    tokens: int, count: int, step_s: float
) -> None:
    steps = PrefillSteps()
    steps.add(count * step_s, count * tokens, count)
    assert steps.step_s == pytest.approx(step_s)
    assert steps.more_s == pytest.approx(step_s / (tokens + KNEE_TOKENS))


@given(st.lists(st.tuples(st.floats(1e-4, 1e3), st.integers(1, 10**5), st.integers(1, 1000)), min_size=1))
def test_a_token_takes_some_time_and_never_more_than_all(steps_: list[tuple[float, int, int]]) -> None:
    steps = PrefillSteps()
    for seconds, tokens, count in steps_:
        steps.add(seconds, tokens, count)
    assert 0.0 < steps.more_s <= steps.token_s


@pytest.mark.parametrize(("seconds", "tokens", "count"), [(0.0, 5, 1), (1.0, 0, 1), (1.0, 5, 0), (-1.0, -5, -1)])
def test_no_prefill_steps_measure_nothing(seconds: float, tokens: int, count: int) -> None:
    steps = PrefillSteps()
    steps.add(seconds, tokens, count)
    assert not steps.known


def test_prefill_and_decode_steps_are_told_apart() -> None:
    speeds = Speeds()
    before = Load(steps=10, step_seconds=1.0, prefill_steps=10, prefill_tokens=500, prefill_seconds=1.0)
    after = Load(
        steps=60,
        step_seconds=4.0,
        prefill_steps=20,
        prefill_tokens=1000,
        prefill_seconds=3.0,
        running=8,
        pull_seconds=0.5,
        bytes_pulled=1000,
    )
    speeds.update(before, after)
    assert speeds.prefill.token_s == pytest.approx(2.0 / 500)
    assert speeds.prefill.step_s == pytest.approx(2.0 / 10)
    assert speeds.step.value == pytest.approx(1.0 / 40)
    assert speeds.batch.value == pytest.approx(8)
    assert speeds.pull.value == pytest.approx(0.5 / 1000)
