"""Spans on their way out of one process. The SDK is imported with the first tracer, so who wants none pays nothing.

Times are wall-clock times in nanoseconds, as spans have them: across hosts they are as far apart as the hosts' clocks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.tracing.context import TraceContext
from tandem.tracing.settings import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Attributes = Mapping[str, str | int | float]

EXPORT_DELAY_MS = 1000
EXPORT_TIMEOUT_S = 5


class Tracer:
    """Makes the spans of one process, and sends them out from a thread of its own."""

    def __init__(self, settings: Tracing, deployment: str, process: str) -> None:
        """``process`` names this one among those of the deployment: ``llm``, or a worker's name.

        Raises:
            OSError: no file can be written in ``settings.directory``.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        exporters: list[SpanExporter] = []
        if settings.directory is not None:
            from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter

            directory = Path(settings.directory)
            directory.mkdir(parents=True, exist_ok=True)
            exporters.append(FileSpanExporter(directory / f"{process}.jsonl"))
        if settings.endpoint is not None:
            from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter

            exporters.append(OTLPSpanExporter(settings.endpoint, timeout=EXPORT_TIMEOUT_S))
        who = {"service.name": "tandem", "service.namespace": deployment, "service.instance.id": process}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample)),
            resource=Resource.create(who),
            shutdown_on_exit=False,
        )
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_DELAY_MS))
        self._tracer = self._provider.get_tracer("tandem")

    def start(self, name: str, parent: TraceContext | Span | None, at_ns: int, attributes: Attributes = {}) -> Span:  # noqa: B006
        """Begin a span; whoever calls ends it. ``parent`` None begins a trace."""
        from opentelemetry import trace

        context: Any = trace.set_span_in_context(trace.INVALID_SPAN)
        if isinstance(parent, TraceContext):
            flags = trace.TraceFlags(parent.sampled)
            ids = int(parent.trace_id, 16), int(parent.span_id, 16)
            remote = trace.SpanContext(*ids, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        elif parent is not None:
            context = trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context, start_time=at_ns, attributes=dict(attributes))

    def add(
        self,
        name: str,
        parent: TraceContext | Span,
        began_ns: int,
        ended_ns: int,
        attributes: Attributes = {},  # noqa: B006
    ) -> None:
        """A span that has ended already."""
        self.start(name, parent, began_ns, attributes).end(max(began_ns, ended_ns))

    def stop(self) -> None:
        """Send out what is left."""
        self._provider.shutdown()


def make_tracer(settings: Tracing, deployment: str, process: str) -> Tracer | None:
    """The tracer of this process; None where the deployment wants no traces."""
    return Tracer(settings, deployment, process) if settings.is_on else None


def context_of(span: Span) -> TraceContext:
    """A span as others name it."""
    context = span.get_span_context()
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)


def fail(span: Span, code: str, message: str) -> None:
    """Mark a span as failed."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, message))


def ns(seconds: float) -> int:
    """Seconds as nanoseconds."""
    return int(1e9 * seconds)


now_ns = time.time_ns
