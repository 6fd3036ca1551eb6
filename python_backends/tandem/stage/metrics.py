"""What a stage tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.errors import ERROR_CODES, ErrorCode
from tandem.messages import EngineEvent, Events, Failed, Finished, Load, Prefilled, Pulled, Role, TierLoad, Tokens

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
        self._gauges: list[Gauge] = []
        self._queued = self._gauge("tandem_queue_length", "Requests that wait in the worker")
        self._running = self._gauge("tandem_running_requests", "Requests in the engine's batch")
        self._used = self._gauge("tandem_kv_blocks_used", "KV blocks held for requests and handles")
        self._cached = self._gauge("tandem_kv_blocks_cached", "KV blocks that nobody holds, kept for reuse")
        self._free = self._gauge("tandem_kv_blocks_free", "KV blocks with nothing in them")
        self._preempted = self._counter("tandem_preemptions", "Times that KV gave way to that of others")
        self._held = self._gauge("tandem_kv_handles_held", "KV handles under a lease")
        self._granted = self._counter("tandem_kv_handles_granted", "KV handles given out")
        self._expired = self._counter("tandem_kv_handles_expired", "KV handles whose lease ran out")
        self._bytes = self._counter("tandem_kv_transfer_bytes", "KV bytes pulled by this worker")
        self._transfer = self._histogram("tandem_kv_transfer_seconds", "KV pull, lease confirmation included")
        self._queue_time = self._histogram("tandem_queue_seconds", "Wait before prefill")
        self._compute = self._histogram("tandem_prefill_seconds", "Prefill computation")
        self._reused = self._counter("tandem_prefix_cache_tokens", "Tokens that were in the prefix cache")
        self._borrowed = self._counter("tandem_borrowed_tokens", "Of these, those whose KV another worker has lent")
        self._not_lent = self._counter("tandem_borrows_failed", "Prefixes that were to be borrowed and were computed")
        self._read = self._counter("tandem_prefill_tokens", "Tokens read, those of the prefix cache not among them")
        self._made = self._counter("tandem_generated_tokens", "Tokens made")
        self._unread = self._gauge("tandem_queued_tokens", "Prompt tokens that are still to be read")
        self._up = self._gauge("tandem_engine_up", "1 while the engine can take work")
        self._restarts = self._counter("tandem_engine_restarts", "Engine processes that ended unasked")
        self._steps = self._counter("tandem_engine_steps", "Engine steps that made progress")
        self._busy = self._counter("tandem_engine_step_seconds", "What the engine's steps took")
        self._exchange = self._counter("tandem_engine_collective_seconds", "Of the steps, in exchange between ranks")
        self._refusals = Counter(
            "tandem_refusals", "Requests refused or failed", [*self._labels, "reason"], registry=self.registry
        )
        for code in ERROR_CODES:
            self._refusals.labels(**self._labels, reason=code)
        self._tier = _TierMetrics(self.registry, self._labels)
        self._last = Load()

    def engine_ready(self) -> None:
        """The engine is there."""
        self._up.set(1)

    def record(self, report: Events) -> None:
        """Take in what the engine reported."""
        load, last = report.load, self._last
        self._up.set(1)
        self._queued.set(load.queued)
        self._running.set(load.running)
        self._used.set(load.blocks_used)
        self._cached.set(load.blocks_cached)
        self._free.set(load.blocks_total - load.blocks_used - load.blocks_cached)
        self._held.set(load.handles_held)
        self._unread.set(load.queued_tokens)
        self._granted.inc(max(0, load.handles_granted - last.handles_granted))
        self._expired.inc(max(0, load.handles_expired - last.handles_expired))
        self._borrowed.inc(max(0, load.tokens_borrowed - last.tokens_borrowed))
        self._not_lent.inc(max(0, load.borrows_failed - last.borrows_failed))
        self._preempted.inc(max(0, load.preemptions - last.preemptions))
        self._read.inc(max(0, load.prefill_tokens - last.prefill_tokens))
        self._steps.inc(max(0, load.steps - last.steps))
        self._busy.inc(max(0.0, load.step_seconds - last.step_seconds))
        self._exchange.inc(max(0.0, load.collective_seconds - last.collective_seconds))
        if load.tier:
            self._tier.record(load, load.tier, last.tier or TierLoad(block_bytes=0))
        self._last = load
        self._count(report.events)

    def _count(self, events: list[EngineEvent]) -> None:
        for event in events:
            match event:
                case Tokens():
                    self._made.inc(len(event.token_ids))
                case Pulled():
                    self._bytes.inc(event.bytes_moved)
                    self._transfer.observe(event.seconds)
                case Prefilled() | Finished():
                    self._reused.inc(event.cached_tokens)
                    if isinstance(event, Prefilled) or event.compute_s:  # a ``Decode`` has its prefill elsewhere
                        self._queue_time.observe(event.queue_s)
                        self._compute.observe(event.compute_s)
                case Failed():
                    self.refused(event.code)

    def refused(self, reason: ErrorCode) -> None:
        """Count a refusal."""
        self._refusals.labels(**self._labels, reason=reason).inc()

    def engine_lost(self) -> None:
        """The engine process ended; a new one counts from zero."""
        self._restarts.inc()
        for gauge in self._gauges:
            gauge.set(0)
        self._last = Load()

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(name, text, list(self._labels), registry=self.registry).labels(**self._labels)
        self._gauges.append(gauge)
        return gauge

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, list(self._labels), registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, text: str) -> Histogram:
        family = Histogram(name, text, list(self._labels), buckets=SECONDS, registry=self.registry)
        return family.labels(**self._labels)
