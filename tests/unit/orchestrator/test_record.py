"""What is told of a request: the spans of its parts, what happened to it, and a line in the log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tandem.text.codec import TextCodec
from tandem.tracing.context import parse_traceparent
from tandem.tracing.settings import Tracing
from tandem.tracing.tracer import Tracer
from tests.unit.orchestrator.trips import Trip, travel
from tests.unit.tracing.spans import read_spans

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def whole(trip: Trip) -> None:
    await trip.reach_decode()
    trip.decode.say(trip.pulled())
    trip.decode.say(trip.tokens(1, len(trip.answer_ids)), trip.finished())
    await trip.end()


def test_a_request_is_one_span_with_its_parts_one_after_the_other(codec: TextCodec, tmp_path: Path) -> None:
    tracer = Tracer(Tracing(directory=str(tmp_path)), "test", "llm")
    trip = travel(whole, codec, tracer=tracer, traceparent=CALLER, max_tokens=9)
    tracer.stop()
    spans = sorted(read_spans(tmp_path), key=lambda span: span.began_ns)
    (request,) = (span for span in spans if span.name == "request")
    parts = [span for span in spans if span is not request]
    assert {span.trace_id for span in spans} == {trip.client.fact("trace_id")} == {CALLER.split("-")[1]}
    assert request.parent_id == CALLER.split("-")[2]
    assert [part.name for part in parts] == ["waiting", "waiting", "waiting", "prefill", "transfer", "decode"]
    assert all(part.parent_id == request.span_id for part in parts)
    ends = [request.began_ns, *(part.ended_ns for part in parts)]
    assert ends == [*(part.began_ns for part in parts), request.ended_ns]
    wanted = {"gen_ai.usage.input_tokens": "3", "tandem.outcome": "length", "tandem.decode_worker": "decode_0"}
    assert wanted.items() <= request.attributes.items()
    for work in (*trip.prefill.work, *trip.decode.work):
        parent = parse_traceparent(work.traceparent)
        assert parent is not None
        assert (parent.trace_id, parent.span_id, parent.sampled) == (request.trace_id, request.span_id, True)


def test_a_migration_is_told_and_so_is_a_failure(codec: TextCodec, tmp_path: Path) -> None:
    async def test(trip: Trip) -> None:
        await trip.reach_prefill()
        trip.prefill.lose()
        await trip.until(lambda: trip.decode.work)
        trip.journey._run_out(0.5)
        await trip.end()

    tracer = Tracer(Tracing(directory=str(tmp_path)), "test", "llm")
    travel(test, codec, tracer=tracer)
    tracer.stop()
    (request,) = (span for span in read_spans(tmp_path) if span.name == "request")
    assert request.parent_id == ""
    assert request.events == ["goes on elsewhere"]
    assert request.failed
    assert request.attributes["error.type"] == request.attributes["tandem.reason"] == "deadline_exceeded"


def test_without_a_tracer_the_callers_trace_goes_on(codec: TextCodec) -> None:
    trip = travel(whole, codec, traceparent=CALLER)
    assert {work.traceparent for work in (*trip.prefill.work, *trip.decode.work)} == {CALLER}
    assert trip.client.fact("trace_id") == CALLER.split("-")[1]
    alone = travel(whole, codec, traceparent="not one")
    assert alone.prefill.work[0].traceparent == ""
    assert "trace_id" not in alone.client.sent[-1]


def test_the_end_is_a_line_in_the_log(codec: TextCodec, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tandem.orchestrator.record"):
        travel(whole, codec, traceparent=CALLER)
        assert not caplog.records
        travel(whole, codec, traceparent=CALLER, is_logged=True)
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["outcome"], fields["input_tokens"], fields["prefill_worker"]) == ("length", 3, "prefill_0")
