"""Labels stay few, however many tenants there are."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from tandem.deployment import Limits
from tandem.orchestrator.admission import Admission, Demand
from tandem.orchestrator.admission_metrics import MAX_TENANTS, AdmissionMetrics
from tandem.routing.room import Room


def test_queues_are_shown_by_priority_and_tenant_with_few_labels() -> None:
    registry = CollectorRegistry()
    metrics = AdmissionMetrics(registry)
    admission = Admission(Limits(), lambda *_: Room(requests=0.0))
    tenants = ["", *(f"t{n}" for n in range(MAX_TENANTS + 4))]
    tickets = []
    for tenant in ("first", *tenants):
        demand = Demand(priority=3, tenant=tenant, prompt_tokens=1, max_tokens=1, blocks=1)
        tickets.append(admission.enter(demand, 0.0)[0])
    admission.admit(0.0)
    metrics.show(admission)

    def waiting(tenant: str) -> float | None:
        return registry.get_sample_value("tandem_queue_requests", {"priority": "3", "tenant": tenant})

    assert (waiting("none"), waiting("t0"), waiting("other"), waiting("first")) == (1, 1, 4, None)
    assert registry.get_sample_value("tandem_admitted_requests") == 1
    for ticket in tickets:
        admission.leave(ticket)
    metrics.show(admission)
    assert (waiting("none"), waiting("t0"), waiting("other")) == (0, 0, 0)
    for tenant in tenants:
        metrics.refused("queue", tenant)
    assert len([s for f in registry.collect() for s in f.samples if s.name == "tandem_admission_refusals_total"]) == (
        MAX_TENANTS + 2 + 3  # those of the other reasons
    )
