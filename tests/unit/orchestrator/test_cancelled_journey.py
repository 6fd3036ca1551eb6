"""Cancellation in every step of a request's way: who is told to let go, and what the client hears."""

from __future__ import annotations

import asyncio

from tandem.text.codec import TextCodec
from tests.unit.orchestrator.trips import Trip, travel


def test_cancelled_before_it_began(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec)
    assert trip.prefill.work == []
    assert trip.client.error is not None
    assert trip.client.error.code == "cancelled"


def test_cancelled_while_the_prompt_is_read(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.may_read.clear()
        trip.start()
        await trip.until(trip.read_started.is_set)
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec)
    assert trip.prefill.work == trip.decode.work == []
    assert trip.client.error is not None


def test_cancelled_in_prefill(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_prefill()
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec)
    assert trip.prefill.cancelled == [trip.id]
    assert trip.decode.cancelled == []
    assert (trip.client.fact("finish_reason"), trip.client.fact("num_output_tokens")) == ("cancelled", 0)
    assert trip.count("cancelled") == 1


def test_cancelled_before_decode_has_the_kv(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec)
    assert (trip.prefill.cancelled, trip.decode.cancelled) == ([trip.prefill.id], [trip.decode.id])
    assert trip.client.fact("finish_reason") == "cancelled"
    assert trip.client.ids() == trip.answer_ids[:1]


def test_cancelled_in_the_middle_of_the_answer(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.say(trip.pulled(), trip.tokens(1, 2))
        await trip.until(lambda: len(trip.client.ids()) == 2)
        trip.journey.cancel()
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec)
    assert trip.prefill.cancelled == []
    assert trip.decode.cancelled == [trip.decode.id]
    assert (trip.client.fact("finish_reason"), trip.client.fact("num_output_tokens")) == ("cancelled", 2)
    assert trip.client.fact("kv_bytes") == 4096


def test_cancelled_after_the_end_changes_nothing(codec: TextCodec) -> None:
    """``Channel`` complains of whatever is sent after the end."""

    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.say(trip.pulled(), trip.tokens(1, 2), trip.finished(), trip.tokens(2, 3))
        trip.journey.cancel()
        await trip.end()
        trip.journey.cancel()
        trip.decode.say(trip.tokens(2, 3), trip.finished())
        await asyncio.sleep(0)

    trip = travel(test, codec)
    assert trip.client.fact("finish_reason") in ("length", "cancelled")
