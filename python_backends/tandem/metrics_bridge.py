"""Shows a prometheus-client registry on Triton's own ``/metrics``.

Each call of Triton's custom metrics API is a round trip to the server process, too dear for every token. So metrics
are kept in a local registry, and this bridge carries the differences over once a second. A histogram becomes the
counters that Prometheus reads it from (``_bucket`` with ``le``, ``_sum``, ``_count``).
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

log = logging.getLogger(__name__)

FLUSH_S = 1.0


class MetricsBridge:
    """One per model instance. ``pb_utils`` is Triton's Python backend module."""

    def __init__(self, registry: CollectorRegistry, pb_utils: Any, **always: str) -> None:
        """``always``: labels that all metrics get."""
        self._registry = registry
        self._always = always
        self._pb = pb_utils
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._shown: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to carry over."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; the last second may be lost. Does not wait: Triton may not answer any more."""
        self._stopped.set()

    def flush(self) -> None:
        """Carry over what changed since the last time."""
        for family in self._registry.collect():
            kind = "gauge" if family.type == "gauge" else "counter"
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._show(sample, kind, family.documentation)

    def _show(self, sample: Sample, kind: str, documentation: str) -> None:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        before = self._shown.get(key)
        if before == sample.value:
            return
        metric = self._metrics.get(key)
        if metric is None:
            family = self._families.get(sample.name)
            if family is None:
                kinds = self._pb.MetricFamily
                family = self._families[sample.name] = _immortal(
                    self._pb.MetricFamily(
                        name=sample.name,
                        description=documentation,
                        kind=kinds.GAUGE if kind == "gauge" else kinds.COUNTER,
                    )
                )
            metric = self._metrics[key] = _immortal(family.Metric(labels=self._always | sample.labels))
        if kind == "gauge":
            metric.set(sample.value)
        elif sample.value > (before or 0.0):
            metric.increment(sample.value - (before or 0.0))
        self._shown[key] = sample.value

    def _run(self) -> None:
        while not self._stopped.wait(FLUSH_S):
            try:
                self.flush()
            except Exception:
                log.exception("metrics were not carried over to Triton; trying again in %.0f s", FLUSH_S)


def _immortal(thing: Any) -> Any:
    """Never freed: Triton 2.51 crashes when a metric is freed after its model was finalized."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing
