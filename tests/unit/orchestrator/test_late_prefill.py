"""A prefill that is late is started a second time elsewhere, and the first answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tandem.deployment import Limits
from tandem.messages import Decode, Prefilled
from tandem.text.codec import TextCodec
from tests.unit.orchestrator.detours import answer, assert_undisturbed, at_work, finish, next_worker
from tests.unit.orchestrator.trips import Trip, travel
from tests.unit.orchestrator.workers import Lane


def hedging(test: Callable[[Trip, Lane, Lane], object], codec: TextCodec, **limits: float) -> Trip:
    """A prefill that is late, and the one that was started besides."""
    given = {"hedge_share": 1.0, "hedge_after_s": 0.05, "hedge_factor": 1.0} | limits

    async def run(trip: Trip) -> None:
        trip.hedging.took(1.0, 1.0)  # there was a request before, that makes room for this one
        trip.start()
        first = await next_worker(trip)
        second = await next_worker(trip, first)
        await test(trip, first, second)  # type: ignore[misc]

    return travel(run, codec, each=2, limits=Limits(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize("winner", [0, 1])
def test_of_a_late_prefill_and_its_hedge_the_first_one_wins(codec: TextCodec, winner: int) -> None:
    async def test(trip: Trip, *lanes: Lane) -> None:
        fast, slow = lanes[winner], lanes[1 - winner]
        decode = await answer(trip, fast)
        assert slow.cancelled == [slow.id]
        assert not slow.open
        slow.say(trip.tokens(0, 1), Prefilled(request_id="", handle=b"too late"))
        assert isinstance(decode.work[-1], Decode)
        assert decode.work[-1].handle == b"ticket"
        assert trip.client.ids() == trip.answer_ids[:1]
        await finish(trip, decode, 1)
        assert trip.client.fact("prefill_worker") == fast.worker.name

    trip = hedging(test, codec)
    assert trip.client.ids() == trip.answer_ids
    assert trip.metrics.registry.get_sample_value("tandem_hedges_total") == 1


def test_one_of_the_two_is_lost(codec: TextCodec) -> None:
    async def test(trip: Trip, first: Lane, second: Lane) -> None:
        first.lose()
        await asyncio.sleep(0.01)
        await finish(trip, await answer(trip, second), 1)

    trip = hedging(test, codec)
    assert trip.client.ids() == trip.answer_ids
    assert sum(len(lane.work) for lane in trip.workers.lanes.values()) == 3


def test_both_are_lost(codec: TextCodec) -> None:
    async def test(trip: Trip, first: Lane, second: Lane) -> None:
        first.lose()
        second.lose()
        await trip.until(lambda: len(first.work) + len(second.work) == 3)
        await finish(trip, await answer(trip, await next_worker(trip)), 1)

    trip = hedging(test, codec)
    assert_undisturbed(trip, 1, "worker_lost")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_without_room_in_the_budget_nothing_is_started_twice(codec: TextCodec, share: float) -> None:
    async def test(trip: Trip) -> None:
        trip.hedging.took(1.0, 1.0)
        trip.start()
        first = await next_worker(trip)
        await asyncio.sleep(0.1)
        assert at_work(trip, "prefill", first) is None
        await finish(trip, await answer(trip, first), 1)

    limits = Limits(hedge_share=share, hedge_after_s=0.01, hedge_factor=1.0)
    assert travel(test, codec, each=2, limits=limits).client.ids()
