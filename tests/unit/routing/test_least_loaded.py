"""Which worker gets the next request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import TandemError
from tandem.routing.least_loaded import Candidate, choose

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.text("abcdef", min_size=1, max_size=4),
        healthy=st.booleans(),
        outstanding=st.integers(0, 20),
        queued=st.integers(0, 20),
        running=st.integers(0, 20),
    ),
    max_size=8,
    unique_by=lambda c: c.name,
)


def in_hand(candidate: Candidate) -> int:
    return max(candidate.outstanding, candidate.queued + candidate.running)


@given(CANDIDATES)
def test_the_chosen_worker_is_healthy_and_none_has_less_in_hand(candidates: list[Candidate]) -> None:
    healthy = {c.name: c for c in candidates if c.healthy}
    if not healthy:
        with pytest.raises(TandemError) as caught:
            choose("decode", candidates)
        assert caught.value.code == "worker_lost"
        return
    chosen = healthy[choose("decode", candidates)]
    assert in_hand(chosen) == min(map(in_hand, healthy.values()))


@given(CANDIDATES)
def test_the_order_of_the_candidates_does_not_matter(candidates: list[Candidate]) -> None:
    if any(c.healthy for c in candidates):
        assert choose("prefill", candidates) == choose("prefill", candidates[::-1])


def test_what_was_just_sent_counts_before_the_worker_reports_it() -> None:
    busy = Candidate(name="a", healthy=True, outstanding=3, queued=0, running=0)
    idle = Candidate(name="b", healthy=True, outstanding=0, queued=1, running=1)
    assert choose("prefill", [busy, idle]) == "b"
