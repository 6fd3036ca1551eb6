"""For tests of a request that goes on elsewhere: which worker has it now, and how it comes to its end all the same."""

from __future__ import annotations

from tandem.messages import Prefilled
from tests.unit.orchestrator.trips import TEXT, Trip
from tests.unit.orchestrator.workers import Lane


def at_work(trip: Trip, stage: str, *but: Lane) -> Lane | None:
    """The worker that has such work, other than these."""
    lanes = [lane for lane in trip.workers.lanes.values() if lane not in but]
    return next((lane for lane in lanes if any(name.endswith(f"/{stage}") for name in lane.open)), None)


async def next_worker(trip: Trip, *but: Lane, stage: str = "prefill") -> Lane:
    """Wait for it."""
    await trip.until(lambda: at_work(trip, stage, *but))
    lane = at_work(trip, stage, *but)
    assert lane is not None
    return lane


async def answer(trip: Trip, prefill: Lane, begin: int = 0) -> Lane:
    """Prefill makes its token; returns the decode worker that got the rest."""
    prefill.say(trip.tokens(begin, begin + 1), Prefilled(request_id="", handle=b"ticket", cached_tokens=2))
    return await next_worker(trip, stage="decode")


async def write(trip: Trip, decode: Lane, begin: int, end: int) -> None:
    decode.say(trip.pulled(), trip.tokens(begin, end))
    await trip.until(lambda: len(trip.client.ids()) == end)


def assert_undisturbed(trip: Trip, migrations: int, reason: str) -> None:
    assert trip.client.error is None
    assert trip.client.ids() == trip.answer_ids
    assert trip.client.text() == TEXT
    facts = {"finish_reason": "length", "num_input_tokens": 3, "num_output_tokens": len(trip.answer_ids)}
    assert {name: trip.client.fact(name) for name in facts} == facts
    assert trip.metrics.registry.get_sample_value("tandem_migrations_total", {"reason": reason}) == migrations


async def finish(trip: Trip, lane: Lane, begin: int) -> None:
    lane.say(trip.pulled(), trip.tokens(begin, len(trip.answer_ids)), trip.finished())
    await trip.end()
