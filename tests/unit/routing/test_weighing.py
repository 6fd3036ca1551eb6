"""The compiled parts against numpy; what costs are made of is in ``test_cost``."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tandem.routing.weighing import find_near

WORKER = st.tuples(st.floats(0.0, 10.0), st.booleans(), st.integers(1, 3))


@given(st.lists(WORKER, min_size=1, max_size=40), st.floats(1.0, 2.0), st.data())
def test_near_are_all_that_cost_little_more_and_lack_no_more(
    workers: list[tuple[float, bool, int]], factor: float, data: st.DataObject
) -> None:
    open_to_all = data.draw(st.integers(0, len(workers) - 1))  # one at least may be chosen
    total = np.array([cost for cost, _, _ in workers])
    bar = np.array([0.0 if is_open or w == open_to_all else np.inf for w, (_, is_open, _) in enumerate(workers)])
    lacking = np.array([float(tokens) for _, _, tokens in workers])
    near = np.zeros(len(workers) + 3, np.int64)
    best, count = find_near(total, bar, lacking, factor, near)
    barred = total + bar
    assert best == barred.argmin()
    expected = np.flatnonzero((barred <= factor * barred[best]) & (lacking <= lacking[best]))
    assert near[:count].tolist() == expected.tolist()
