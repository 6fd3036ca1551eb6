"""What a stage tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.errors import ErrorCode
from tandem.messages import Events, Failed, Finished, Load, Prefilled, Pulled, Role, TierLoad

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


_TIER_COUNTERS = {
    "hits": "KV blocks read back from the second tier",
    "misses": "KV blocks of prompts that were in no tier, or slower to read than to compute",
    "corrupt": "KV blocks read back that were not what they should be",
    "dropped": "KV blocks that left the fast memory before they were copied",
    "errors": "Failures to write or read the second tier's disk",
}


class _TierMetrics:
    """The tiers of the prefix cache; only where there is a second one."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self._labels = labels
        names = [*labels, "tier"]
        self._blocks = Gauge("tandem_kv_tier_blocks", "KV blocks held or kept in a tier", names, registry=registry)
        self._bytes = Gauge("tandem_kv_tier_bytes", "Bytes of the KV blocks in a tier", names, registry=registry)
        self._counters = {
            name: Counter(f"tandem_kv_tier_{name}", text, list(labels), registry=registry)
            for name, text in _TIER_COUNTERS.items()
        }

    def record(self, load: Load, tier: TierLoad, last: TierLoad) -> None:
        """Take in what a worker with a second tier reported."""
        fast = load.blocks_used + load.blocks_cached
        sizes = {
            "fast": (fast, fast * tier.block_bytes),
            "host": (tier.host_blocks, tier.host_bytes),
            "disk": (tier.disk_blocks, tier.disk_bytes),
        }
        for name, (blocks, size) in sizes.items():
            self._blocks.labels(**self._labels, tier=name).set(blocks)
            self._bytes.labels(**self._labels, tier=name).set(size)
        for name, counter in self._counters.items():
            grown = getattr(tier, name) - getattr(last, name)
            counter.labels(**self._labels).inc(max(0, grown))


class StageMetrics:
    """Metrics of one worker, all with the labels ``stage`` and ``worker``."""

    def __init__(self, stage: Role, worker: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"stage": stage, "worker": worker}
        self._queued = self._gauge("tandem_queue_length", "Requests that wait in the worker")
        self._running = self._gauge("tandem_running_requests", "Requests in the engine's batch")
        self._used = self._gauge("tandem_kv_blocks_used", "KV blocks held for requests and handles")
        self._cached = self._gauge("tandem_kv_blocks_cached", "KV blocks that nobody holds, kept for reuse")
        self._free = self._gauge("tandem_kv_blocks_free", "KV blocks with nothing in them")
        self._held = self._gauge("tandem_kv_handles_held", "KV handles under a lease")
        self._granted = self._counter("tandem_kv_handles_granted", "KV handles given out")
        self._expired = self._counter("tandem_kv_handles_expired", "KV handles whose lease ran out")
        self._bytes = self._counter("tandem_kv_transfer_bytes", "KV bytes pulled by this worker")
        self._transfer = self._histogram("tandem_kv_transfer_seconds", "KV pull, lease confirmation included")
        self._queue_time = self._histogram("tandem_queue_seconds", "Wait before prefill")
        self._compute = self._histogram("tandem_prefill_seconds", "Prefill computation")
        self._reused = self._counter("tandem_prefix_cache_tokens", "Tokens that were in the prefix cache")
        self._restarts = self._counter("tandem_engine_restarts", "Engine processes that ended unasked")
        self._steps = self._counter("tandem_engine_steps", "Engine steps that made progress")
        self._refusals = Counter(
            "tandem_refusals", "Requests refused or failed", [*self._labels, "reason"], registry=self.registry
        )
        self._tier = _TierMetrics(self.registry, self._labels)
        self._last = Load()

    def record(self, report: Events) -> None:
        """Take in what the engine reported."""
        load = report.load
        self._queued.set(load.queued)
        self._running.set(load.running)
        self._used.set(load.blocks_used)
        self._cached.set(load.blocks_cached)
        self._free.set(load.blocks_total - load.blocks_used - load.blocks_cached)
        self._held.set(load.handles_held)
        self._granted.inc(max(0, load.handles_granted - self._last.handles_granted))
        self._expired.inc(max(0, load.handles_expired - self._last.handles_expired))
        self._steps.inc(max(0, load.steps - self._last.steps))
        if load.tier:
            self._tier.record(load, load.tier, self._last.tier or TierLoad(block_bytes=0))
        self._last = load
        for event in report.events:
            match event:
                case Pulled():
                    self._bytes.inc(event.bytes_moved)
                    self._transfer.observe(event.seconds)
                case Prefilled():
                    self._queue_time.observe(event.queue_s)
                    self._compute.observe(event.compute_s)
                    self._reused.inc(event.cached_tokens)
                case Finished():
                    self._reused.inc(event.cached_tokens)
                case Failed():
                    self.refused(event.code)

    def refused(self, reason: ErrorCode) -> None:
        """Count a refusal."""
        self._refusals.labels(**self._labels, reason=reason).inc()

    def engine_lost(self) -> None:
        """The engine process ended; a new one counts from zero."""
        self._restarts.inc()
        self._last = Load()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, list(self._labels), registry=self.registry).labels(**self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, list(self._labels), registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, text: str) -> Histogram:
        family = Histogram(name, text, list(self._labels), buckets=SECONDS, registry=self.registry)
        return family.labels(**self._labels)
