"""A worker is lost at each point of a request's way: it goes on elsewhere, and the client sees each token once."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from tandem.deployment import Limits
from tandem.errors import ErrorCode, TandemError
from tandem.kv.handle import digest_tokens
from tandem.messages import Failed, Finished, Generate, Prefill, Prefilled, Sampling, TokenLogprob, Tokens
from tandem.orchestrator import recovery as recovery_module
from tandem.text.codec import TextCodec
from tests.unit.orchestrator.detours import answer, assert_undisturbed, finish, next_worker, write
from tests.unit.orchestrator.trips import Trip, travel


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "BACK_OFF_S", 0.0)


def test_lost_in_prefill(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        first.lose()
        second = await next_worker(trip, first)
        assert second.worker.name.startswith("prefill")
        assert (second.work[0].token_ids, second.work[0].output_ids) == ([5, 6, 7], [])
        assert second.id != first.id
        assert trip.workers.patience_s == math.inf  # now it waits as long as it has time
        await finish(trip, await answer(trip, second), 1)
        assert first.cancelled == [first.id]

    assert_undisturbed(travel(test, codec, each=2), 1, "worker_lost")


def test_the_prefill_worker_is_lost_while_decode_reads(codec: TextCodec) -> None:
    """Decode might notice only when its own deadline is over."""

    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        decode = await answer(trip, first)
        first.lose()
        await trip.until(lambda: decode.cancelled == [decode.id])
        second = await next_worker(trip, first)
        assert isinstance(second.work[-1], Prefill)
        assert second.work[-1].output_ids == trip.answer_ids[:1]
        assert trip.client.ids() == trip.answer_ids[:1]
        await finish(trip, await answer(trip, second, 1), 2)

    assert_undisturbed(travel(test, codec, each=2), 1, "worker_lost")


def test_the_prefill_worker_is_lost_after_decode_has_read(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        decode = await answer(trip, first)
        await write(trip, decode, 1, 2)
        first.lose()
        await finish(trip, decode, 2)

    trip = travel(test, codec, each=2)
    assert trip.client.ids() == trip.answer_ids
    assert sum(len(lane.work) for lane in trip.workers.lanes.values()) == 2


@pytest.mark.parametrize(
    "code", ["transfer_failed", "lease_expired", "handle_stale_epoch", "handle_unknown_worker", "lease_cancelled"]
)
def test_a_hand_over_that_failed_goes_through_prefill_again(codec: TextCodec, code: ErrorCode) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        decode = await answer(trip, first)
        decode.say(Failed(request_id="", code=code, message="no KV"))
        second = await next_worker(trip, first)
        assert isinstance(second.work[-1], Prefill)
        assert first.cancelled == [first.id]  # its lease ends at once
        await finish(trip, await answer(trip, second, 1), 2)

    assert_undisturbed(travel(test, codec, each=2), 1, code)


def test_lost_in_decode(codec: TextCodec) -> None:
    sampling = Sampling(temperature=1.0, seed=9, frequency_penalty=0.5, repetition_penalty=1.2)

    async def test(trip: Trip) -> None:
        trip.start()
        decode = await answer(trip, await next_worker(trip))
        await write(trip, decode, 1, 2)
        decode.lose()
        second = await next_worker(trip, decode)
        work = second.work[-1]
        assert isinstance(work, Prefill)
        assert (work.token_ids, work.output_ids, work.sampling) == ([5, 6, 7], trip.answer_ids[:2], sampling)
        assert work.stopping.max_tokens == 9  # of the whole answer
        other = await answer(trip, second, 2)
        assert other.worker.name not in (decode.worker.name, "prefill_0", "prefill_1")
        await finish(trip, other, 3)

    trip = travel(test, codec, each=2, sampling=sampling, max_tokens=9)
    assert_undisturbed(trip, 1, "worker_lost")
    assert trip.client.fact("num_cached_tokens") == 2  # of the prompt's first reading
    assert trip.client.fact("kv_bytes") == 2 * 4096


def test_lost_with_a_whole_request(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.whole = True
        trip.start()
        await trip.until(lambda: trip.decode.work)
        assert isinstance(trip.decode.work[0], Generate)
        trip.decode.say(trip.tokens(0, 2))
        await trip.until(lambda: len(trip.client.ids()) == 2)
        trip.workers.whole = False
        trip.decode.lose()
        second = await next_worker(trip, trip.decode)
        await finish(trip, await answer(trip, second, 2), 3)

    trip = travel(test, codec, each=2, token_ids=list(range(5, 25)))
    assert trip.client.ids() == trip.answer_ids
    assert trip.client.fact("num_input_tokens") == 20


def test_tokens_that_come_again_are_not_sent_again_and_keep_their_log_probabilities(codec: TextCodec) -> None:
    def tokens(trip: Trip, begin: int, end: int, sign: float) -> Tokens:
        logprobs = [TokenLogprob(logprob=sign * n) for n in range(begin, end)]
        return Tokens(request_id="", index=begin, token_ids=trip.answer_ids[begin:end], logprobs=logprobs)

    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        first.say(tokens(trip, 0, 1, 1.0), Prefilled(request_id="", handle=b"ticket"))
        decode = await next_worker(trip, stage="decode")
        decode.say(trip.pulled(), tokens(trip, 1, 2, 1.0), tokens(trip, 1, 2, -1.0))
        decode.lose()
        await trip.until(lambda: decode.cancelled)
        second = await next_worker(trip, decode)
        second.say(tokens(trip, 1, 3, -1.0), Prefilled(request_id="", handle=b"ticket"))
        decode = await next_worker(trip, stage="decode")
        decode.say(trip.pulled(), tokens(trip, 3, len(trip.answer_ids), -1.0), trip.finished())
        await trip.end()

    trip = travel(test, codec, each=2, sampling=Sampling(logprobs=0))
    said = [float(x) for t in trip.client.sent if "output_log_probs" in t for x in t["output_log_probs"].reshape(-1)]
    assert trip.client.ids() == trip.answer_ids
    assert said == [0.0, 1.0, *(-float(n) for n in range(2, len(trip.answer_ids)))]


def test_the_answer_was_complete_when_its_worker_was_lost(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        decode = await answer(trip, await next_worker(trip))
        decode.say(trip.pulled(), trip.tokens(1, 3))
        decode.lose()
        await trip.end()

    trip = travel(test, codec, each=2, max_tokens=3)
    assert trip.client.ids() == trip.answer_ids[:3]
    assert trip.client.fact("finish_reason") == "length"


@pytest.mark.parametrize("fault", ["stops", "fails"])
def test_a_worker_that_stops_or_fails_a_request_by_itself(codec: TextCodec, fault: str) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        failed = Failed(request_id="", code="engine_failed", message="a step failed")
        first.say(Finished(request_id="", reason="cancelled") if fault == "stops" else failed)
        await finish(trip, await answer(trip, await next_worker(trip, first)), 1)

    assert_undisturbed(travel(test, codec, each=2), 1, "worker_lost" if fault == "stops" else "engine_failed")


def test_an_answer_that_has_begun_is_not_given_up_for_a_full_queue(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.workers.lanes["decode_0"].refusal = TandemError("overloaded", "full")
        trip.workers.lanes["decode_1"].refusal = TandemError("overloaded", "full")
        trip.start()
        first = await next_worker(trip)
        first.say(trip.tokens(0, 1), Prefilled(request_id="", handle=b"ticket"))
        await trip.until(lambda: first.cancelled)
        for lane in trip.workers.lanes.values():
            lane.refusal = None
        second = await next_worker(trip)
        await finish(trip, await answer(trip, second, 1), 2)

    assert_undisturbed(travel(test, codec, each=2), 1, "overloaded")


def test_the_only_workers_are_asked_again(codec: TextCodec) -> None:
    """What failed is avoided only where there is somebody else: with one decode worker gone, prefill does both."""

    async def test(trip: Trip) -> None:
        await trip.reach_decode()
        trip.decode.lose()
        await trip.until(lambda: trip.prefill.open and isinstance(trip.prefill.work[-1], Generate))
        trip.prefill.lose()
        await trip.until(lambda: len(trip.prefill.work) == 3)
        await finish(trip, await answer(trip, trip.prefill, 1), 2)

    assert_undisturbed(travel(test, codec), 2, "worker_lost")


def test_a_request_that_kills_workers_is_stopped_and_named(codec: TextCodec, caplog: pytest.LogCaptureFixture) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        while not trip.client.closed:
            for lane in trip.workers.lanes.values():
                lane.lose()
            await asyncio.sleep(0)
        await trip.end()

    with caplog.at_level(logging.WARNING):
        trip = travel(test, codec, each=3, limits=Limits(max_migrations=3))
    assert trip.client.error is not None
    assert trip.client.error.code == "worker_lost"
    assert "given up after 4 tries" in trip.client.error.message
    assert sum(len(lane.work) for lane in trip.workers.lanes.values()) == 4
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "mine#" in said
    assert digest_tokens([5, 6, 7]).hex() in said
    assert all(f"prefill_{n} (worker_lost)" in said for n in range(3))


def test_migration_can_be_switched_off(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        (await next_worker(trip)).lose()
        await trip.end()

    trip = travel(test, codec, each=2, limits=Limits(max_migrations=0))
    assert trip.client.error is not None
    assert (trip.client.error.code, "is gone (in prefill on" in trip.client.error.message) == ("worker_lost", True)


def test_a_client_that_leaves_while_its_request_waits_to_go_on(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "BACK_OFF_S", 60.0)

    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        first.lose()
        await trip.until(lambda: first.cancelled)
        trip.journey.cancel()
        await trip.end()

    assert travel(test, codec, each=2).client.fact("finish_reason") == "cancelled"


# ------------------------------------------------------------------ deadlines of the parts


@pytest.mark.parametrize(
    ("limits", "part", "where"),
    [
        (Limits(prefill_timeout_s=0.1), "limits.prefill_timeout_s: no first token after 0.1 s", "in prefill on "),
        (Limits(decode_timeout_s=0.1), "limits.decode_timeout_s: no further token after 0.1 s", "in decode on "),
    ],
)
def test_a_stage_that_takes_too_long_is_named(codec: TextCodec, limits: Limits, part: str, where: str) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        first = await next_worker(trip)
        if "decode" in where:
            await write(trip, await answer(trip, first), 1, 2)
        await trip.end()

    trip = travel(test, codec, each=2, limits=limits)
    assert trip.client.error is not None
    message = trip.client.error.message
    assert trip.client.error.code == "deadline_exceeded"
    assert message.startswith(f"{part} ({where}")
    assert f"{2 if 'decode' in where else 0} tokens of the answer made; waiting 0." in message


def test_a_transfer_that_takes_too_long_is_tried_again(codec: TextCodec) -> None:
    async def test(trip: Trip) -> None:
        trip.start()
        decode = await answer(trip, await next_worker(trip))
        second = await next_worker(trip, *(lane for lane in trip.workers.lanes.values() if lane.work))
        assert decode.cancelled == [decode.id]
        await finish(trip, await answer(trip, second, 1), 2)

    trip = travel(test, codec, each=2, handover_s=0.1)
    assert_undisturbed(trip, 1, "transfer_failed")
