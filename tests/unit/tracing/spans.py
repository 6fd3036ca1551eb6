"""Spans as they stand in files, read back by whoever would read them: OTLP's JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Found(NamedTuple):
    """One span."""

    process: str
    """That told of it."""
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    failed: bool
    events: list[str]


def read_spans(directory: Path, trace_id: str | None = None) -> list[Found]:
    """All spans, or those of one trace."""
    spans = [
        _read(file.stem, span)
        for file in sorted(directory.glob("*.jsonl"))
        for line in file.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    return [span for span in spans if trace_id in (None, span.trace_id)]


def _read(process: str, span: dict[str, Any]) -> Found:
    values = {entry["key"]: next(iter(entry["value"].values())) for entry in span.get("attributes", [])}
    return Found(
        process,
        span["name"],
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId", ""),
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
        values,
        span.get("status", {}).get("code") == 2,
        [event["name"] for event in span.get("events", [])],
    )
