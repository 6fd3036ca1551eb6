"""Spans on their way out: to files and to a collector; nothing where nobody asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from tandem.tracing.context import TraceContext
from tandem.tracing.settings import Tracing
from tandem.tracing.tracer import Tracer, context_of, make_tracer
from tests.unit.tracing.spans import read_spans

CALLER = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)


def test_spans_go_to_a_file_of_their_process(tmp_path: Path) -> None:
    tracer = Tracer(Tracing(directory=str(tmp_path / "traces")), "test", "decode_0")
    span = tracer.start("decode", CALLER, 1000, {"tandem.worker": "decode_0"})
    tracer.add("transfer", context_of(span), 1200, 1500)
    span.end(2000)
    tracer.stop()
    transfer, decode = read_spans(tmp_path / "traces")
    assert (decode.trace_id, decode.parent_id) == (CALLER.trace_id, CALLER.span_id)
    assert (transfer.trace_id, transfer.parent_id) == (CALLER.trace_id, decode.span_id)
    assert (decode.process, decode.name, decode.began_ns, decode.ended_ns) == ("decode_0", "decode", 1000, 2000)
    assert decode.attributes == {"tandem.worker": "decode_0"}


def test_what_the_caller_does_not_record_is_not_recorded(tmp_path: Path) -> None:
    tracer = Tracer(Tracing(directory=str(tmp_path), sample=0.0), "test", "llm")
    for parent in (None, CALLER._replace(sampled=False)):
        span = tracer.start("request", parent, 1)
        assert not context_of(span).sampled
        span.end(2)
    tracer.add("request", CALLER, 1, 2)
    tracer.stop()
    assert [span.parent_id for span in read_spans(tmp_path)] == [CALLER.span_id]


def test_spans_go_to_a_collector() -> None:
    bodies: list[dict[str, Any]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        tracer = Tracer(Tracing(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces"), "test", "llm")
        tracer.add("request", CALLER, 1, 2)
        tracer.stop()
        server.shutdown()
    (sent,) = bodies
    (resource,) = sent["resourceSpans"]
    who = {entry["key"]: entry["value"]["stringValue"] for entry in resource["resource"]["attributes"]}
    assert (who["service.name"], who["service.namespace"], who["service.instance.id"]) == ("tandem", "test", "llm")
    assert resource["scopeSpans"][0]["spans"][0]["traceId"] == CALLER.trace_id


def test_nothing_is_imported_where_nobody_asks_for_traces() -> None:
    assert make_tracer(Tracing(), "test", "llm") is None
    program = (
        "import sys, tandem.orchestrator.orchestrator, tandem.stage.stage, tandem.engines.server; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
