"""Where the time of a request went."""

from __future__ import annotations

from tandem.orchestrator.timings import Timings


def test_parts_add_up_to_all_of_it() -> None:
    now = [10.0]
    timings = Timings(lambda: now[0])
    for part, seconds in (("prefill", 1.0), ("transfer", 2.0), ("decode", 0.5), ("waiting", 4.0), ("prefill", 0.25)):
        now[0] += seconds
        timings.enter(part)  # type: ignore[arg-type]
        if part == "transfer":
            timings.was_queued(1.5)
    now[0] += 0.25
    assert str(timings) == "waiting 1.25 s, queue 1.50 s, transfer 0.50 s, decode 4.00 s, prefill 0.75 s"
    assert timings.total == 8.0
