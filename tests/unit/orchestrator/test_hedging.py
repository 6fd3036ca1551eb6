"""When a prefill is late, and how many may be started twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.deployment import Limits
from tandem.orchestrator.hedging import Hedging


def test_late_is_what_exceeds_the_expectation_by_far() -> None:
    hedging = Hedging(Limits(hedge_factor=3.0, hedge_after_s=0.5))
    assert hedging.late_after(0.01) == 0.5
    assert hedging.late_after(2.0) == 6.0


def test_where_expectations_are_always_exceeded_only_the_slowest_are_late() -> None:
    hedging = Hedging(Limits(hedge_factor=3.0, hedge_after_s=0.5))
    for n in range(200):
        hedging.took(1.0, 10.0 if n % 10 else 20.0)
    assert hedging.late_after(1.0) == pytest.approx(20.0)
    for _ in range(1000):
        hedging.took(1.0, 1.0)
    assert hedging.late_after(1.0) == 3.0


@given(st.lists(st.booleans(), max_size=400), st.sampled_from([0.0, 0.05, 0.3]))
def test_no_more_than_the_share_is_started_twice(wanted: list[bool], share: float) -> None:
    hedging = Hedging(Limits(hedge_share=share))
    spent = 0
    for number, wants in enumerate(wanted, 1):
        hedging.took(1.0, 1.0)
        if wants and hedging.affordable:
            hedging.spend()
            spent += 1
        assert spent <= share * number + 1e-9
