"""What a worker tells of each request to those who watch: its spans, and a line in the log when it ends.

Made of what passes through the stage, work in one direction and events in the other, so engines have no part in it but
the times that their events tell.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from tandem.errors import TandemError
from tandem.logs import about
from tandem.messages import AnyWork, EngineEvent, Failed, Finished, Prefill, Prefilled, Pulled, Tokens
from tandem.tracing.context import TraceContext, parse_traceparent
from tandem.tracing.tracer import Tracer, fail, now_ns, ns

log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """Times in nanoseconds of the wall clock."""

    kind: str
    """``prefill``, ``decode`` or ``generate``."""
    input_tokens: int
    trace: TraceContext | None
    began: int
    first_token: int = 0
    output_tokens: int = 0
    pulled: int = 0
    pull_ns: int = 0
    bytes_moved: int = 0


class WorkRecords:
    """Of one worker. ``took`` and ``happened`` may be called from different threads."""

    def __init__(self, worker: str, tracer: Tracer | None, is_logged: bool) -> None:
        self._worker, self._tracer, self._is_logged = worker, tracer, is_logged
        self._watched: dict[str, _Watched] = {}

    def took(self, work: Iterable[AnyWork]) -> None:
        """The worker has taken these requests."""
        if self._tracer is None and not self._is_logged:
            return
        for one in work:
            trace = parse_traceparent(one.traceparent) if one.traceparent else None
            if self._is_logged or (self._tracer is not None and trace is not None and trace.sampled):
                kind = str(one.__struct_config__.tag)
                self._watched[one.request_id] = _Watched(kind, len(one.token_ids), trace, now_ns())

    def happened(self, events: Iterable[EngineEvent]) -> None:
        """Of these requests, in the order of events."""
        if not self._watched:
            return
        for event in events:
            if (watched := self._watched.get(event.request_id)) is not None:
                self._take(event, watched)

    def clear(self) -> None:
        """The engine is gone, and with it all that it had."""
        self._watched.clear()

    def _take(self, event: EngineEvent, watched: _Watched) -> None:
        match event:
            case Tokens():
                watched.first_token = watched.first_token or now_ns()
                watched.output_tokens += len(event.token_ids)
            case Pulled():
                watched.pulled, watched.pull_ns, watched.bytes_moved = now_ns(), ns(event.seconds), event.bytes_moved
            case Prefilled() | Finished() | Failed():
                del self._watched[event.request_id]
                self._end(event, watched)

    def _end(self, event: Prefilled | Finished | Failed, watched: _Watched) -> None:
        ended = now_ns()
        if self._tracer is not None and watched.trace is not None:
            self._trace(self._tracer, watched.trace, event, watched, ended)
        if self._is_logged:
            error = TandemError(event.code, event.message) if isinstance(event, Failed) else None
            fields = about(
                request_id=event.request_id,
                trace_id=watched.trace.trace_id if watched.trace else "",
                seconds=round(1e-9 * (ended - watched.began), 4),
                **_fields(event, watched),
            )
            log.info("%s of %s ended%s", watched.kind, event.request_id, f": {error}" if error else "", extra=fields)

    def _trace(
        self, tracer: Tracer, trace: TraceContext, event: Prefilled | Finished | Failed, watched: _Watched, ended: int
    ) -> None:
        """One span for all of it, and within it what the worker did one after the other."""
        about_it = {"tandem.worker": self._worker, **{f"tandem.{k}": v for k, v in _fields(event, watched).items()}}
        span = tracer.start(watched.kind, trace, watched.began, about_it)
        if isinstance(event, Failed):
            fail(span, event.code, event.message)
        if watched.pulled:
            tracer.add("queue", span, watched.began, watched.pulled - watched.pull_ns)
            pulled = {"tandem.kv_bytes": watched.bytes_moved}
            tracer.add("transfer", span, watched.pulled - watched.pull_ns, watched.pulled, pulled)
            tracer.add("tokens", span, watched.pulled, ended)
        elif watched.first_token and not isinstance(event, Failed):
            compute = watched.first_token - ns(event.compute_s)
            tracer.add("queue", span, watched.began, min(compute, watched.began + ns(event.queue_s)))
            tracer.add("compute", span, compute, watched.first_token, {"tandem.cached_tokens": event.cached_tokens})
            if watched.kind != Prefill.__struct_config__.tag:
                tracer.add("tokens", span, watched.first_token, ended)
        span.end(ended)


def _fields(event: Prefilled | Finished | Failed, watched: _Watched) -> dict[str, str | int]:
    outcome = {"outcome": "error", "reason": event.code} if isinstance(event, Failed) else {"outcome": "done"}
    return {
        **outcome,
        "input_tokens": watched.input_tokens,
        "output_tokens": watched.output_tokens,
        "kv_bytes": watched.bytes_moved,
    }
