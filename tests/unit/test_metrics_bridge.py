"""Metrics on their way to Triton, whose side is a recording one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.metrics_bridge import MetricsBridge

DEADLINE_S = 20.0


class Recorded:
    """What Triton would show: (name, labels) → kind and value; as its ``pb_utils``."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}
        self.kinds: dict[str, str] = {}
        self.calls = 0
        self.failures_left = 0
        self.changed = threading.Event()
        recorded = self

        class Metric:
            def __init__(self, key: tuple[str, str], kind: str) -> None:
                self._key, self._kind = key, kind
                recorded.values[key] = 0.0

            def set(self, value: float) -> None:
                assert self._kind == "gauge"
                self._change(value)

            def increment(self, value: float) -> None:
                assert value > 0
                self._change(recorded.values[self._key] + value)

            def _change(self, value: float) -> None:
                recorded.calls += 1
                if recorded.failures_left:
                    recorded.failures_left -= 1
                    raise RuntimeError("Triton does not answer")
                recorded.values[self._key] = value
                recorded.changed.set()

        class MetricFamily:
            GAUGE, COUNTER = "gauge", "counter"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert name not in recorded.kinds, "Triton refuses a second family of one name"
                assert description
                self._name = name
                recorded.kinds[name] = kind

            def Metric(self, labels: dict[str, str]) -> Metric:
                key = (self._name, ",".join(f"{k}={v}" for k, v in sorted(labels.items())))
                assert key not in recorded.values, "Triton refuses the same metric twice"
                return Metric(key, recorded.kinds[self._name])

        self.MetricFamily: Any = MetricFamily


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def triton() -> Recorded:
    return Recorded()


def test_a_gauge_shows_its_value(registry: CollectorRegistry, triton: Recorded) -> None:
    gauge, bridge = Gauge("load", "Load", ["worker"], registry=registry), MetricsBridge(registry, triton)
    for value in (3.0, 1.0, 0.0):
        gauge.labels(worker="a").set(value)
        bridge.flush()
        assert triton.values["load", "worker=a"] == value
    assert triton.kinds["load"] == "gauge"


def test_a_counter_shows_its_sum(registry: CollectorRegistry, triton: Recorded) -> None:
    counter, bridge = Counter("things", "Things", ["kind"], registry=registry), MetricsBridge(registry, triton)
    for amount in (2, 3, 0.5):
        counter.labels(kind="x").inc(amount)
        counter.labels(kind="y").inc()
        bridge.flush()
    assert triton.values["things_total", "kind=x"] == 5.5
    assert triton.values["things_total", "kind=y"] == 3
    assert triton.kinds == {"things_total": "counter"}


def test_a_counter_is_there_before_it_counts(registry: CollectorRegistry, triton: Recorded) -> None:
    Counter("things", "Things", registry=registry)
    MetricsBridge(registry, triton).flush()
    assert triton.values == {("things_total", ""): 0.0}


def test_a_histogram_is_the_counters_that_prometheus_reads(registry: CollectorRegistry, triton: Recorded) -> None:
    histogram, bridge = Histogram("t", "Time", buckets=(1.0, 5.0), registry=registry), MetricsBridge(registry, triton)
    histogram.observe(0.5)
    bridge.flush()
    histogram.observe(3.0)
    histogram.observe(9.0)
    bridge.flush()
    assert triton.values == {
        ("t_bucket", "le=1.0"): 1,
        ("t_bucket", "le=5.0"): 2,
        ("t_bucket", "le=+Inf"): 3,
        ("t_count", ""): 3,
        ("t_sum", ""): 12.5,
    }
    assert set(triton.kinds.values()) == {"counter"}


def test_what_did_not_change_is_not_sent(registry: CollectorRegistry, triton: Recorded) -> None:
    gauge, counter = Gauge("g", "G", registry=registry), Counter("c", "C", registry=registry)
    bridge = MetricsBridge(registry, triton)
    gauge.set(1)
    counter.inc()
    bridge.flush()
    calls = triton.calls
    bridge.flush()
    assert triton.calls == calls
    gauge.set(2)
    bridge.flush()
    assert triton.calls == calls + 1


def test_what_failed_is_made_up_for(registry: CollectorRegistry, triton: Recorded) -> None:
    counter, bridge = Counter("c", "C", registry=registry), MetricsBridge(registry, triton)
    counter.inc(2)
    triton.failures_left = 1
    with pytest.raises(RuntimeError):
        bridge.flush()
    counter.inc(3)
    bridge.flush()
    assert triton.values["c_total", ""] == 5


def test_the_thread_goes_on_after_a_failure(registry: CollectorRegistry, triton: Recorded) -> None:
    counter, bridge = Counter("c", "C", registry=registry), MetricsBridge(registry, triton)
    counter.inc(2)
    triton.failures_left = 1
    bridge.start()
    assert triton.changed.wait(DEADLINE_S)
    bridge.stop()
    assert triton.values["c_total", ""] == 2
