"""A request's way through both stages, step by step: what leaves when, who is told to let go, how it ends."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from tandem.deployment import Limits
from tandem.errors import TandemError
from tandem.messages import Decode, Failed, Finished, FinishReason, Generate, Prefill, Prefilled, Tokens
from tandem.orchestrator.admission import Demand
from tandem.text.codec import TextCodec
from tests.unit.orchestrator.trips import TEXT, Trip, travel
from tests.unit.routing.sites import PREFILL_S, measured

FIRST = Demand(priority=5, tenant="", prompt_tokens=3, max_tokens=3, blocks=1)
"""Of another request, that is in flight."""


def test_a_whole_journey(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        assert trip.client.ids() == trip.answer_ids[:1]  # the first token did not wait for decode
        trip.decode.say(trip.pulled())
        trip.decode.say(trip.tokens(1, len(trip.answer_ids)), trip.finished())
        await trip.end()

    trip = travel(test, codec, max_tokens=9)
    prefill, decode = trip.prefill.work[0], trip.decode.work[0]
    assert isinstance(prefill, Prefill)
    assert isinstance(decode, Decode)
    assert (prefill.token_ids, prefill.output_ids, prefill.stopping.max_tokens) == ([5, 6, 7], [], 9)
    assert (decode.handle, decode.token_ids) == (b"ticket", [5, 6, 7])
    assert decode.output_ids == trip.answer_ids[:1]
    assert (decode.stopping, decode.sampling) == (prefill.stopping, prefill.sampling)
    assert trip.client.ids() == trip.answer_ids
    assert trip.client.text() == TEXT
    facts = {"finish_reason": "length", "num_input_tokens": 3, "num_output_tokens": len(trip.answer_ids)}
    facts |= {"prefill_worker": "prefill_0", "decode_worker": "decode_0", "num_cached_tokens": 2, "kv_bytes": 4096}
    assert {name: trip.client.fact(name) for name in facts} == facts
    assert trip.prefill.cancelled == trip.decode.cancelled == []
    assert trip.count("length") == 1


def test_both_stages_on_one_worker(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.whole = True
        trip.start()
        await trip.until(lambda: trip.decode.work)
        request_id = trip.decode.work[0].request_id
        trip.decode.say(Tokens(request_id=request_id, index=0, token_ids=trip.answer_ids[:1]))
        await trip.until(lambda: trip.client.ids() == trip.answer_ids[:1])
        assert not trip.workers.router._table.wait_s.any()  # the prompt has been read
        trip.decode.say(Tokens(request_id=request_id, index=1, token_ids=trip.answer_ids[1:]))
        trip.decode.say(Finished(request_id=request_id, reason="length"))
        await trip.end()

    trip = travel(test, codec, token_ids=list(range(5, 25)))
    work = trip.decode.work[0]
    assert isinstance(work, Generate)
    assert (work.token_ids, work.output_ids) == (list(range(5, 25)), [])
    assert trip.prefill.work == trip.prefill.cancelled == trip.decode.cancelled == []
    assert trip.client.text() == TEXT
    facts = {"prefill_worker": "decode_0", "decode_worker": "decode_0", "kv_bytes": 0, "finish_reason": "length"}
    assert {name: trip.client.fact(name) for name in facts} == facts
    assert str(trip.client.fact("route")).startswith("generate on decode_0: least cost")


def test_both_stages_on_one_worker_cancelled(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.whole = True
        trip.start()
        await trip.until(lambda: trip.decode.work)
        trip.journey.cancel()
        await trip.end()

    trip = travel(test, codec, token_ids=list(range(5, 25)))
    assert trip.decode.cancelled == [trip.decode.work[0].request_id]
    assert trip.client.fact("finish_reason") == "cancelled"


def test_what_a_request_takes_of_its_workers_is_counted_step_by_step(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        table = trip.workers.router._table
        await trip.reach_prefill()
        assert (table.in_hand.tolist(), table.wait_s.tolist()) == ([1, 1], [3 * PREFILL_S, 0])
        trip.prefill.say(trip.tokens(0, 1), Prefilled(request_id=trip.id, handle=b"ticket"))
        await trip.until(lambda: trip.decode.work)
        assert (table.in_hand.tolist(), table.wait_s.tolist()) == ([1, 1], [0, 0])
        trip.decode.say(trip.pulled())
        await trip.until(lambda: table.in_hand[0] == 0)
        assert table.in_hand[1] == 1
        trip.decode.say(trip.finished())
        await trip.end()

    trip = travel(test, codec)
    assert "prefill on prefill_0" in str(trip.client.fact("route"))


def test_without_streaming_everything_comes_at_the_end(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        assert trip.client.sent == []
        trip.decode.say(trip.pulled(), trip.tokens(1, len(trip.answer_ids)), trip.finished("stop"))
        await trip.end()

    trip = travel(test, codec, stream=False)
    assert (len(trip.client.sent), trip.client.text()) == (1, TEXT)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_is_over_with_its_first_token(codec: TextCodec, reason: FinishReason) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_prefill()
        trip.prefill.say(trip.tokens(0, 1), Prefilled(request_id=trip.id, handle=None, finish_reason=reason))
        await trip.end()

    trip = travel(test, codec)
    assert trip.decode.work == []
    assert trip.client.fact("finish_reason") == reason
    assert trip.client.fact("num_output_tokens") == 1
    assert trip.prefill.cancelled == []


@pytest.mark.parametrize("finish_reason", [None, "length"])
def test_a_stop_word_in_the_first_token(codec: TextCodec, finish_reason: FinishReason | None) -> None:
    """Whatever the engine thinks of that token, the answer ends by the stop word, and an unused handle is given up."""

    async def test(trip: Trip) -> None:
        await trip.reach_prefill()
        handle = None if finish_reason else b"ticket"
        trip.prefill.say(trip.tokens(0, 1), Prefilled(request_id=trip.id, handle=handle, finish_reason=finish_reason))
        await trip.end()

    first = codec.decode(codec.encode(TEXT, add_special_tokens=False)[:1])
    trip = travel(test, codec, stop_words=(first,))
    assert trip.decode.work == []
    assert trip.client.fact("finish_reason") == "stop"
    assert trip.client.text() == ""
    assert trip.prefill.cancelled == ([] if finish_reason else [trip.id])


def test_a_stop_word_in_decode_stops_the_worker(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.say(trip.pulled(), trip.tokens(1, len(trip.answer_ids)))
        await trip.end()

    trip = travel(test, codec, stop_words=("dog",))
    assert trip.client.text() == "The quick "
    assert trip.client.fact("finish_reason") == "stop"
    assert trip.decode.cancelled == [trip.decode.id]
    assert trip.prefill.cancelled == []  # decode has the KV: nothing is left there


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("step", "held"),
    [("reading the prompt", 0), ("in prefill on prefill_0", 1), ("in decode on decode_0", 2)],
)
def test_a_deadline_says_where_it_ran_out(codec: TextCodec, step: str, held: int) -> None:
    """``held``: workers that have the request by then, and are told to let go."""

    async def test(trip: Trip) -> None:
        if step == "reading the prompt":
            trip.may_read.clear()
            trip.start()
        elif "prefill" in step:
            await trip.reach_prefill()
        else:
            await trip.reach_decode()
        await trip.end()

    trip = travel(test, codec, timeout_s=0.2)
    assert trip.client.error is not None
    assert trip.client.error.code == "deadline_exceeded"
    got = 1 if "decode" in step else 0
    message = trip.client.error.message
    assert message.startswith(f"timeout_s: not done after 0.2 s; {step}, {got} tokens of the answer made; waiting 0.")
    parts = {"reading": [], "in prefill": ["prefill"], "in decode": ["queue", "prefill", "transfer"]}
    assert [part for part in ("queue", "prefill", "transfer", "decode") if f", {part} " in message] == next(
        names for where, names in parts.items() if step.startswith(where)
    )
    assert len(trip.prefill.cancelled + trip.decode.cancelled) == held
    assert trip.count("error") == 1


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_request_s_own_fault_is_not_tried_again(codec: TextCodec, stage: str) -> None:
    async def test(trip: Trip) -> None:
        await (trip.reach_prefill() if stage == "prefill" else trip.reach_decode())
        lane = trip.prefill if stage == "prefill" else trip.decode
        lane.say(Failed(request_id=trip.id, code="prompt_too_long", message="does not fit"))
        await trip.end()

    trip = travel(test, codec)
    assert trip.client.error is not None
    assert trip.client.error.code == "prompt_too_long"
    assert trip.client.error.message == f"does not fit (in {stage} on {stage}_0)"
    assert trip.prefill.cancelled == [trip.id]  # its blocks are not held until the lease ends


def test_a_refusal_for_overload_reaches_the_client_once_the_longest_wait_is_over(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.prefill.refusal = TandemError("overloaded", "full")
        trip.start()
        await trip.end()

    trip = travel(test, codec, limits=Limits(max_queue_s=0.2))
    assert trip.client.error is not None
    assert (trip.client.error.code, trip.client.error.message) == ("overloaded", "full")
    assert trip.decode.work == []


def test_a_worker_that_is_full_is_waited_for(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.prefill.refusal = TandemError("overloaded", "full")
        trip.start()
        await trip.until(lambda: trip.journey._recovery._refusals == 2)
        trip.prefill.refusal = None
        await trip.until(lambda: trip.prefill.work)
        trip.prefill.say(trip.tokens(0, 1), Prefilled(request_id=trip.id, handle=None, finish_reason="length"))
        await trip.end()

    trip = travel(test, codec, max_tokens=1)
    assert trip.client.error is None
    assert trip.metrics.registry.get_sample_value("tandem_migrations_total", {"reason": "overloaded"}) == 0


def test_tenants_share_no_cached_blocks(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.say(trip.finished())
        await trip.end()

    trip = travel(test, codec, tenant="acme", max_tokens=2)
    assert (trip.workers.salt, trip.prefill.work[0].salt, trip.decode.work[0].salt) == ("acme", "acme", "acme")


def test_without_room_a_request_waits_and_its_client_may_leave(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        first = trip.gate.enter(FIRST, math.inf, lambda _: None)
        trip.start()
        await trip.until(lambda: trip.admission.queue)
        assert trip.prefill.work == []
        if trip.journey.ask.request_id == "leaves":
            trip.journey.cancel()
            await trip.until(lambda: not trip.admission.queue)
            trip.gate.leave(first)
        else:
            trip.gate.leave(first)
            await trip.until(lambda: trip.prefill.work)
            trip.journey.cancel()
        await trip.end()

    for name in ("leaves", "stays"):
        trip = travel(test, codec, request_id=name, limits=Limits(max_requests=1))
        assert len(trip.prefill.work) == (name == "stays")


def test_who_is_better_done_whole_passes_those_who_wait_for_prefill_workers(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.router.report("prefill_0", 1, measured(queued=1, queued_tokens=1000), None)
        first, behind = (trip.gate.enter(FIRST, math.inf, lambda _: None) for _ in range(2))
        assert (first.state, behind.state) == ("admitted", "waiting")
        trip.start()
        await trip.until(lambda: trip.decode.work)
        assert behind.state == "waiting"
        trip.gate.leave(behind)
        trip.gate.leave(first)
        trip.workers.router.report("prefill_0", 1, measured(), None)
        trip.decode.say(trip.tokens(0, 3), trip.finished())
        await trip.end()

    trip = travel(test, codec, max_tokens=3)
    assert isinstance(trip.decode.work[0], Generate)
    assert "whole:" in trip.client.fact("route")
    assert trip.workers.waiting.others == 1
    assert trip.workers.waiting.own_s > 0


def test_who_has_waited_for_room_too_long_is_told_when_to_come_back(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        first = trip.gate.enter(FIRST, math.inf, lambda _: None)
        trip.start()
        await trip.until(lambda: trip.client.error)
        trip.gate.leave(first)
        await trip.end()

    trip = travel(test, codec, tenant="acme", limits=Limits(max_requests=1, max_queue_s=0.1))
    assert trip.client.error is not None
    assert trip.client.error.code == "overloaded"
    assert "limits.max_queue_s); try again in 1 s" in trip.client.error.message
    labels = {"reason": "waited", "tenant": "acme"}
    assert trip.metrics.registry.get_sample_value("tandem_admission_refusals_total", labels) == 1
    assert trip.metrics.registry.get_sample_value("tandem_admitted_requests") == 0


def test_without_workers_nothing_begins(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.error = TandemError("worker_lost", "no decode worker is ready")
        trip.start()
        await trip.end()

    trip = travel(test, codec)
    assert trip.client.error is trip.workers.error


def test_a_defect_is_an_error_and_not_silence(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.say(msgspec.structs.replace(trip.tokens(1, 2), index=5))  # tokens 1 to 4 are missing
        await trip.end()

    trip = travel(test, codec)
    assert trip.client.error is not None
    assert trip.client.error.code == "engine_failed"
    assert "in decode on decode_0" in trip.client.error.message
    assert trip.decode.cancelled == [trip.decode.id]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"token_ids": [5, 9999]}, "input_ids[1]: 9999 is no token id"),
        ({"token_ids": list(range(64))}, "prompt: 64 tokens; at most 63"),
        ({"max_tokens": 62}, "max_tokens: 62; after a prompt of 3 tokens the context of 64 leaves 61"),
        ({"stop_token_ids": (9999,)}, "stop_token_ids[0]: 9999 is no token id"),
        ({"token_ids": None, "text": "x" * 10_000}, "text_input: 10000 bytes; no text of more than"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(codec: TextCodec, fields: dict[str, Any], said: str) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        await trip.end()

    trip = travel(test, codec, **fields)
    assert trip.client.error is not None
    assert said in trip.client.error.message
    assert trip.prefill.work == []
