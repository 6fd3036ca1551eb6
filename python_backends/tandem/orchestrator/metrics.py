"""What the orchestrator tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.errors import ErrorCode
from tandem.messages import FinishReason

TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
REQUEST_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class OrchestratorMetrics:
    """Metrics of one orchestrator; requests as their clients see them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge("tandem_requests_in_flight", "Requests in hand", registry=self.registry)
        self._requests = Counter("tandem_requests", "Requests ended", ["outcome"], registry=self.registry)
        self._refusals = Counter(
            "tandem_orchestrator_refusals", "Requests refused or failed", ["reason"], registry=self.registry
        )
        self._migrations = Counter(
            "tandem_migrations", "Requests that went on elsewhere", ["reason"], registry=self.registry
        )
        self._hedges = Counter("tandem_hedges", "Late prefills started a second time", registry=self.registry)
        self._prompt = Counter("tandem_prompt_tokens", "Prompt tokens of finished requests", registry=self.registry)
        self._output = Counter("tandem_output_tokens", "Answer tokens of finished requests", registry=self.registry)
        self._ttft = Histogram("tandem_ttft_seconds", "Time to first token", buckets=TTFT_S, registry=self.registry)
        self._inter_token = Histogram(
            "tandem_inter_token_seconds", "Time between tokens", buckets=INTER_TOKEN_S, registry=self.registry
        )
        self._duration = Histogram(
            "tandem_request_seconds", "Whole requests", buckets=REQUEST_S, registry=self.registry
        )

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

    def finished(self, reason: FinishReason, prompt_tokens: int, output_tokens: int, seconds: float) -> None:
        """A request ended with an answer, whole or cancelled."""
        self._requests.labels(outcome=reason).inc()
        self._prompt.inc(prompt_tokens)
        self._output.inc(output_tokens)
        self._duration.observe(seconds)

    def failed(self, code: ErrorCode) -> None:
        """A request ended with an error."""
        self._requests.labels(outcome="error").inc()
        self._refusals.labels(reason=code).inc()
