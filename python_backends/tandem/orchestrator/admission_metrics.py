"""What admission tells Prometheus. Labels are bounded: the first tenants have their own, all others share one."""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.messages import DEFAULT_PRIORITY
from tandem.orchestrator.admission import Admission, Reason

MAX_TENANTS = 16
SHARED = "other"
UNNAMED = "none"
WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class TenantLabels:
    """Tenants as label values."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, tenant: str) -> str:
        """The label of a tenant; the same one each time."""
        if not tenant:
            return UNNAMED
        if tenant not in self._known and len(self._known) < MAX_TENANTS:
            self._known.add(tenant)
        return tenant if tenant in self._known else SHARED


class AdmissionMetrics:
    """Metrics of one orchestrator's admission."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tenants = TenantLabels()
        self._refusals = Counter(
            "tandem_admission_refusals", "Requests refused before any work", ["reason", "tenant"], registry=registry
        )
        self._waiting = Gauge("tandem_queue_requests", "Requests waiting", ["priority", "tenant"], registry=registry)
        self._in_flight = Gauge("tandem_admitted_requests", "Requests let go to the workers", registry=registry)
        wait = "tandem_admission_wait_seconds"
        self._wait = Histogram(wait, "Wait of admitted requests", ["priority"], buckets=WAIT_S, registry=registry)
        for reason in get_args(Reason):
            self._refusals.labels(reason=reason, tenant=UNNAMED)
        self._waiting.labels(priority=str(DEFAULT_PRIORITY), tenant=UNNAMED)
        self._wait.labels(priority=str(DEFAULT_PRIORITY))
        self._shown: set[tuple[int, str]] = set()

    def refused(self, reason: Reason, tenant: str) -> None:
        """A request was turned away."""
        self._refusals.labels(reason=reason, tenant=self._tenants.of(tenant)).inc()

    def admitted(self, priority: int, seconds: float) -> None:
        """A request may go on after a wait."""
        self._wait.labels(priority=str(priority)).observe(seconds)

    def show(self, admission: Admission) -> None:
        """Bring the gauges up to date."""
        counts: dict[tuple[int, str], int] = dict.fromkeys(self._shown, 0)
        for priority, tenant, count in admission.queue.counts():
            key = priority, self._tenants.of(tenant)
            counts[key] = counts.get(key, 0) + count
        for (priority, label), count in counts.items():
            self._waiting.labels(priority=str(priority), tenant=label).set(count)
        self._shown = {key for key, count in counts.items() if count}
        self._in_flight.set(admission.in_flight)
