"""What a worker tells of its requests, made of the work that goes in and the events that come out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Prefill,
    Prefilled,
    Pulled,
    Sampling,
    Stopping,
    Tokens,
)
from tandem.stage.record import WorkRecords
from tandem.tracing.settings import Tracing
from tandem.tracing.tracer import Tracer
from tests.unit.tracing.spans import Found, read_spans

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def work(kind: type[AnyWork], name: str, traceparent: str = CALLER) -> AnyWork:
    more = {"handle": b""} if kind is Decode else {}
    limits = Stopping(max_tokens=9)
    return kind(
        request_id=name, token_ids=[1, 2], sampling=Sampling(), stopping=limits, traceparent=traceparent, **more
    )


def token(name: str) -> Tokens:
    return Tokens(request_id=name, index=0, token_ids=[7])


def told(directory: Path, kind: type[AnyWork], *events: EngineEvent) -> dict[str, Found]:
    tracer = Tracer(Tracing(directory=str(directory)), "test", "worker_0")
    records = WorkRecords("worker_0", tracer, is_logged=False)
    records.took([work(kind, "a"), work(kind, "untraced", ""), work(kind, "unsampled", CALLER[:-1] + "0")])
    for event in events:
        records.happened([event, token("untraced"), token("unknown")])
    tracer.stop()
    spans = read_spans(directory)
    assert {span.trace_id for span in spans} == {CALLER.split("-")[1]}
    return {span.name: span for span in spans}


def within(spans: dict[str, Found], whole: str, *parts: str) -> bool:
    """Whether the parts of a span are these, one after the other, inside of it."""
    found = [spans[part] for part in parts]
    edges = [spans[whole].began_ns, *(edge for part in found for edge in (part.began_ns, part.ended_ns))]
    assert all(part.parent_id == spans[whole].span_id for part in found)
    return set(spans) == {whole, *parts} and edges[1:] == sorted(edges[1:]) and edges[-1] <= spans[whole].ended_ns


def test_prefill_waits_and_computes(tmp_path: Path) -> None:
    prefilled = Prefilled(request_id="a", handle=b"x", cached_tokens=16, queue_s=0.0, compute_s=1e-9)
    spans = told(tmp_path, Prefill, token("a"), prefilled)
    assert within(spans, "prefill", "queue", "compute")
    assert spans["prefill"].parent_id == CALLER.split("-")[2]
    assert spans["prefill"].attributes["tandem.worker"] == "worker_0"
    assert spans["compute"].attributes == {"tandem.cached_tokens": "16"}


def test_decode_waits_pulls_and_makes_tokens(tmp_path: Path) -> None:
    pulled = Pulled(request_id="a", bytes_moved=4096, seconds=1e-9)
    spans = told(tmp_path, Decode, pulled, token("a"), token("a"), Finished(request_id="a", reason="length"))
    assert within(spans, "decode", "queue", "transfer", "tokens")
    assert spans["transfer"].attributes == {"tandem.kv_bytes": "4096"}
    assert spans["decode"].attributes["tandem.output_tokens"] == "2"


def test_generate_does_both(tmp_path: Path) -> None:
    finished = Finished(request_id="a", reason="length", compute_s=1e-9)
    spans = told(tmp_path, Generate, token("a"), finished)
    assert within(spans, "generate", "queue", "compute", "tokens")


def test_a_failure_is_told(tmp_path: Path) -> None:
    spans = told(tmp_path, Decode, Failed(request_id="a", code="transfer_failed", message="it did not come"))
    assert set(spans) == {"decode"}
    assert spans["decode"].failed
    assert spans["decode"].attributes["error.type"] == "transfer_failed"


def test_the_end_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    records = WorkRecords("worker_0", None, is_logged=True)
    with caplog.at_level(logging.INFO, "tandem.stage.record"):
        records.took([work(Prefill, "a"), work(Prefill, "b")])
        records.happened([token("a"), Prefilled(request_id="a", handle=b"x")])
        records.clear()
        records.happened([Failed(request_id="b", code="worker_lost", message="gone")])
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["request_id"], fields["trace_id"], fields["outcome"]) == ("a", CALLER.split("-")[1], "done")
