"""When two runs differ by more than noise."""

from __future__ import annotations

import random

import pytest
from live.rounds import Figure, chance_of_lying_apart, compare, compare_all


def _figure(values: list[float], *, more_is_better: bool = True, name: str = "tokens/s") -> Figure:
    return Figure(name=name, unit="1/s", more_is_better=more_is_better, values=values)


def test_rounds_that_lie_apart_are_a_difference() -> None:
    found = compare(_figure([10, 11, 12, 10, 11]), _figure([13, 14, 13, 15, 13]))
    assert found.verdict == "better"
    assert found.change == pytest.approx(2 / 11)
    assert found.chance == pytest.approx(2 / 252)
    assert compare(found.after, found.before).verdict == "worse"


def test_less_may_be_better() -> None:
    low, high = (_figure(values, more_is_better=False) for values in ([1.0, 2, 3, 1], [4.0, 5, 6, 4]))
    assert (compare(low, high).verdict, compare(high, low).verdict) == ("worse", "better")


def test_rounds_that_overlap_are_noise_however_far_the_medians() -> None:
    found = compare(_figure([10, 10, 10, 10]), _figure([9, 100, 100, 100]))
    assert (found.verdict, found.chance) == ("within the noise", 1.0)


def test_three_rounds_each_cannot_tell() -> None:
    assert compare(_figure([1, 2, 3]), _figure([7, 8, 9])).verdict == "too few rounds"
    assert compare(_figure([1, 2, 3, 1]), _figure([7, 8, 9, 7])).verdict == "better"


def test_equal_runs_lie_apart_as_seldom_as_is_said() -> None:
    draw = random.Random(3)
    runs = 4000
    apart = sum(
        compare(*(_figure([draw.gauss(0, 1) for _ in range(4)]) for _ in "ab")).verdict in ("better", "worse")
        for _ in range(runs)
    )
    assert apart / runs == pytest.approx(chance_of_lying_apart(4, 4), abs=0.01)


def test_only_figures_of_both_runs_are_compared() -> None:
    both, gone, new = (_figure([1.0], name=name) for name in ("both", "gone", "new"))
    assert [one.after.name for one in compare_all([gone, both], [both, new])] == ["both"]


def test_nothing_before() -> None:
    assert compare(_figure([0, 0, 0, 0]), _figure([0, 0, 0, 0])).change == 0
    assert compare(_figure([0, 0, 0, 0]), _figure([1, 1, 1, 1])).change == float("inf")
