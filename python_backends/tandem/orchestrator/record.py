"""What is told of one request to those who watch: its spans, and a line in the log when it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tandem.api.answer import Facts
from tandem.api.ask import Ask
from tandem.errors import TandemError
from tandem.logs import about, bind
from tandem.orchestrator.timings import Part
from tandem.tracing.context import parse_traceparent
from tandem.tracing.tracer import Tracer, context_of, fail, now_ns

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)


class RequestRecord:
    """Of one request, from its arrival on. The span of each part follows on the last one's; workers' spans, which know
    it by ``traceparent``, stand beside them."""

    def __init__(self, ask: Ask, name: str, tracer: Tracer | None, is_logged: bool) -> None:
        """``name``: the request's, as in the log. Without a tracer the caller's trace is only passed on."""
        self._name, self._tracer, self._is_logged = name, tracer, is_logged
        caller = parse_traceparent(ask.traceparent)
        self._span: Span | None = None
        self._part: Span | None = None
        if tracer is not None:
            began = now_ns()
            self._span = tracer.start("request", caller, began, {"tandem.request_id": ask.request_id})
            self._part = tracer.start("waiting", self._span, began)
            caller = context_of(self._span)
        self.traceparent = str(caller) if caller else ""
        """For the workers."""
        self.trace_id = caller.trace_id if caller else ""
        """Empty where the request belongs to no trace."""

    def begin(self) -> None:
        """From now on what this task logs is about the request."""
        bind(request_id=self._name, trace_id=self.trace_id)

    def enter(self, part: Part) -> None:
        """The request's next part."""
        if self._tracer is not None and self._part is not None:
            at = now_ns()
            self._part.end(at)
            self._part = self._tracer.start(part, self._span, at)

    def note(self, event: str, worker: str, reason: str) -> None:
        """Something that happened on the way: it went on elsewhere, or was started a second time."""
        if self._span is not None:
            self._span.add_event(event, {"tandem.worker": worker, "tandem.reason": reason}, now_ns())

    def end(self, facts: Facts, seconds: float, error: TandemError | None = None) -> None:
        """The request has ended, with an answer or with this error."""
        if self._span is not None and self._part is not None:
            at = now_ns()
            if error is not None:
                fail(self._span, error.code, error.message)
            self._span.set_attributes(_attributes(facts, error))
            self._part.end(at)
            self._span.end(at)
        if self._is_logged:
            fields = about(**_fields(facts, error), seconds=round(seconds, 4), ttft_s=round(1e-3 * facts.ttft_ms, 4))
            log.info("request %s ended: %s", self._name, error or facts.finish_reason, extra=fields)


def _attributes(facts: Facts, error: TandemError | None) -> dict[str, str | int]:
    """By OpenTelemetry's names where it has some."""
    fields = _fields(facts, error)
    return {
        "gen_ai.usage.input_tokens": facts.num_input_tokens,
        "gen_ai.usage.output_tokens": facts.num_output_tokens,
        **{f"tandem.{name}": value for name, value in fields.items() if not name.endswith("put_tokens")},
    }


def _fields(facts: Facts, error: TandemError | None) -> dict[str, str | int]:
    return {
        "outcome": "error" if error else facts.finish_reason,
        **({"reason": error.code} if error else {}),
        "input_tokens": facts.num_input_tokens,
        "cached_tokens": facts.num_cached_tokens,
        "output_tokens": facts.num_output_tokens,
        "prefill_worker": facts.prefill_worker,
        "decode_worker": facts.decode_worker,
        "kv_bytes": facts.kv_bytes,
    }
