"""What the orchestrator tells Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.errors import ERROR_CODES, ErrorCode
from tandem.messages import FinishReason, Role, StageName, does
from tandem.orchestrator.recovery import MOVABLE

TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
REQUEST_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

WorkerState = Literal["good", "draining", "out", "away"]
"""out: it hangs, and gets nothing until it answers a probe; away: not greeted yet, lost, or refused."""


class WorkerView(NamedTuple):
    """A worker as the orchestrator sees it."""

    name: str
    role: Role
    state: WorkerState
    requests: int
    """This orchestrator's, in its hand."""


class OrchestratorMetrics:
    """Metrics of one orchestrator; requests as their clients see them. What can be counted is there from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = self._gauge("tandem_requests_in_flight", "Requests in hand")
        self._requests = self._counter("tandem_requests", "Requests ended", "outcome")
        self._refusals = self._counter("tandem_orchestrator_refusals", "Requests refused or failed", "reason")
        self._migrations = self._counter("tandem_migrations", "Requests that went on elsewhere", "reason")
        self._hedges = self._counter("tandem_hedges", "Late prefills started a second time")
        self._prompt = self._counter("tandem_prompt_tokens", "Prompt tokens of finished requests")
        self._cached = self._counter("tandem_cached_prompt_tokens", "Of the prompt tokens, those found cached")
        self._output = self._counter("tandem_output_tokens", "Answer tokens of finished requests")
        self._ttft = self._histogram("tandem_ttft_seconds", "Time to first token", TTFT_S)
        self._inter_token = self._histogram("tandem_inter_token_seconds", "Time between tokens", INTER_TOKEN_S)
        self._duration = self._histogram("tandem_request_seconds", "Whole requests", REQUEST_S)
        self._workers = self._gauge("tandem_workers", "Workers that do a stage, by state", "stage", "state")
        self._state = self._gauge("tandem_worker_state", "1 for the state that it is in", "stage", "worker", "state")
        self._given = self._gauge("tandem_worker_requests", "Requests in its hand, of this one", "stage", "worker")
        self._known: dict[str, WorkerView] = {}
        for outcome in (*get_args(FinishReason), "error"):
            self._requests.labels(outcome=outcome)
        for code in ERROR_CODES:
            self._refusals.labels(reason=code)
        for code in MOVABLE:
            self._migrations.labels(reason=code)
        self.workers([])

    def first_token(self, seconds: float) -> None:
        """A request has its first token."""
        self._ttft.observe(seconds)

    def tokens(self, count: int, seconds_each: float) -> None:
        """Further tokens have come."""
        for _ in range(count):
            self._inter_token.observe(seconds_each)

    def migrated(self, code: ErrorCode) -> None:
        """A request goes on elsewhere after this error."""
        self._migrations.labels(reason=code).inc()

    def hedged(self) -> None:
        """A late prefill was started a second time."""
        self._hedges.inc()

    def finished(
        self, reason: FinishReason, prompt_tokens: int, cached_tokens: int, output_tokens: int, seconds: float
    ) -> None:
        """A request ended with an answer, whole or cancelled."""
        self._requests.labels(outcome=reason).inc()
        self._prompt.inc(prompt_tokens)
        self._cached.inc(cached_tokens)
        self._output.inc(output_tokens)
        self._duration.observe(seconds)

    def failed(self, code: ErrorCode) -> None:
        """A request ended with an error."""
        self._requests.labels(outcome="error").inc()
        self._refusals.labels(reason=code).inc()

    def workers(self, views: Sequence[WorkerView]) -> None:
        """All workers there are now; those that are forgotten keep zeros."""
        here = {view.name: view for view in views}
        for view in (self._known | here).values():
            state = view.state if view.name in here else None
            for each in get_args(WorkerState):
                self._state.labels(stage=view.role, worker=view.name, state=each).set(each == state)
            self._given.labels(stage=view.role, worker=view.name).set(view.requests if state else 0)
        self._known |= here
        for stage in get_args(StageName):
            for each in get_args(WorkerState):
                count = sum(view.state == each and does(view.role, stage) for view in views)
                self._workers.labels(stage=stage, state=each).set(count)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
