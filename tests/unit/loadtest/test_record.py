"""What a client takes note of while a stream runs."""

from __future__ import annotations

from live.events import Event, decode_json
from live.record import Recording

LAST = Event(output_ids=[5, 6], finish_reason="length", num_input_tokens=9, num_cached_tokens=8, prefill_worker="p")


def test_waiting_counts_from_when_a_request_was_due() -> None:
    recording = Recording("chat", due=1.0, sent=1.5)
    recording.take(decode_json(b'{"output_ids":7,"text_output":"a"}'), 2.0)
    recording.take(LAST, 2.25)
    record = recording.end(2.5)
    assert (record.ttft, record.seconds, record.tokens) == (1.0, 1.5, 3)
    assert record.gaps == [0.25, 0.0], "of two tokens in one message only the first waited"
    assert (record.finish, record.prompt_tokens, record.cached_tokens, record.prefill_worker) == ("length", 9, 8, "p")
    assert recording.text == "a"


def test_first_message_with_two_tokens() -> None:
    recording = Recording("chat", 0.0, 0.0)
    recording.take(LAST, 1.0)
    assert recording.end(1.0).gaps == [0.0]


def test_a_stream_that_just_stops_is_an_error() -> None:
    recording = Recording("chat", 0.0, 0.0)
    recording.take(Event(output_ids=[1]), 1.0)
    assert recording.end(1.0).error == "the stream ended without a finish reason"


def test_who_leaves_is_no_failure_and_an_error_keeps_its_code() -> None:
    leaver = Recording("leaver", 0.0, 0.0)
    leaver.take(Event(output_ids=[1]), 1.0)
    assert (leaver.end(1.0, left=True).finish, leaver.end(1.0, left=True).error) == ("left", "")
    refused = Recording("chat", 0.0, 0.0)
    refused.take(decode_json(b'{"error":"in model llm: [overloaded] 256 requests"}'), 1.0)
    record = refused.end(1.0)
    assert (record.finish, record.error_code, record.ttft) == ("", "overloaded", None)
