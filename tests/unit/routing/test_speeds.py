"""Speeds from counters."""

from __future__ import annotations

import pytest

from tandem.messages import Load
from tandem.routing.speeds import MEMORY_S, Mean, Speeds


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
    assert speeds.prefill.value == pytest.approx(2.0 / 500)
    assert speeds.step.value == pytest.approx(1.0 / 40)
    assert speeds.batch.value == pytest.approx(8)
    assert speeds.pull.value == pytest.approx(0.5 / 1000)
