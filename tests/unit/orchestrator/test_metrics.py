"""What the orchestrator tells Prometheus of its workers."""

from __future__ import annotations

from tandem.orchestrator.metrics import OrchestratorMetrics, WorkerView


def test_each_worker_is_in_one_state_and_one_that_is_forgotten_in_none() -> None:
    metrics = OrchestratorMetrics()

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"tandem_{name}", labels)

    def count(state: str) -> list[float | None]:
        return [value("workers", stage=stage, state=state) for stage in ("prefill", "decode")]

    assert count("good") == [0, 0]
    metrics.workers(
        [WorkerView("p", "prefill", "good", 2), WorkerView("d", "decode", "out", 1), WorkerView("b", "both", "good", 0)]
    )
    assert (count("good"), count("out"), count("away")) == ([2, 1], [0, 1], [0, 0])
    assert value("worker_state", stage="decode", worker="d", state="out") == 1
    assert value("worker_state", stage="decode", worker="d", state="good") == 0
    assert value("worker_requests", stage="prefill", worker="p") == 2
    metrics.workers([WorkerView("p", "prefill", "draining", 1)])
    assert (count("good"), count("draining"), count("out")) == ([0, 0], [1, 0], [0, 0])
    assert value("worker_state", stage="decode", worker="d", state="out") == 0
    assert value("worker_requests", stage="decode", worker="d") == 0
