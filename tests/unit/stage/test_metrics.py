"""What a stage tells Prometheus of its engine."""

from __future__ import annotations

import msgspec

from tandem.messages import Events, Finished, Load, Prefilled, TierLoad, Tokens
from tandem.stage.metrics import StageMetrics


def test_blocks_are_used_cached_or_free() -> None:
    metrics = StageMetrics("decode", "decode_0")
    load = Load(blocks_total=100, blocks_used=30, blocks_cached=60)
    events = [
        Prefilled(request_id="a", handle=None, cached_tokens=16),
        Finished(request_id="b", reason="stop", cached_tokens=32),
    ]
    metrics.record(Events(events=events, load=load))
    labels = {"stage": "decode", "worker": "decode_0"}
    names = ("kv_blocks_used", "kv_blocks_cached", "kv_blocks_free", "prefix_cache_tokens_total")
    assert [metrics.registry.get_sample_value(f"tandem_{n}", labels) for n in names] == [30, 60, 10, 48]


def test_the_second_tier_is_told_where_there_is_one() -> None:
    metrics = StageMetrics("decode", "decode_0")
    labels = {"stage": "decode", "worker": "decode_0"}

    def value(name: str, **more: str) -> float | None:
        return metrics.registry.get_sample_value(f"tandem_kv_tier_{name}", labels | more)

    metrics.record(Events(events=[], load=Load(blocks_used=3, blocks_cached=4)))
    assert value("blocks", tier="fast") is None
    tier = TierLoad(block_bytes=10, host_blocks=5, host_bytes=50, disk_blocks=6, disk_bytes=72, hits=7, dropped=8)
    for _ in range(2):
        metrics.record(Events(events=[], load=Load(blocks_used=3, blocks_cached=4, tier=tier)))
    assert [value("blocks", tier=t) for t in ("fast", "host", "disk")] == [7, 5, 6]
    assert [value("bytes", tier=t) for t in ("fast", "host", "disk")] == [70, 50, 72]
    names = ("hits", "misses", "corrupt", "dropped", "errors")
    assert [value(f"{name}_total") for name in names] == [7, 0, 0, 8, 0]
    metrics.engine_lost()
    metrics.record(Events(events=[], load=Load(tier=TierLoad(block_bytes=10, hits=2))))
    assert value("hits_total") == 9


def test_counters_run_on_over_the_loss_of_an_engine_and_gauges_fall() -> None:
    metrics = StageMetrics("decode", "decode_0")

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"tandem_{name}", {"stage": "decode", "worker": "decode_0"})

    assert value("engine_up") == 0
    metrics.engine_ready()
    load = Load(prefill_tokens=30, queued_tokens=5, steps=4, step_seconds=0.5, collective_seconds=0.1, blocks_total=9)
    load = msgspec.structs.replace(load, preemptions=6)
    metrics.record(Events(events=[Tokens(request_id="a", index=0, token_ids=[7, 8])], load=load))
    names = ("engine_up", "queued_tokens", "kv_blocks_free", "prefill_tokens_total", "generated_tokens_total")
    names += ("engine_step_seconds_total", "engine_collective_seconds_total", "preemptions_total")
    assert [value(name) for name in names] == [1, 5, 9, 30, 2, 0.5, 0.1, 6]
    metrics.engine_lost()
    assert [value(name) for name in names[:3]] == [0, 0, 0]
    metrics.record(Events(events=[], load=Load(prefill_tokens=3, step_seconds=0.25)))
    assert [value(name) for name in names] == [1, 0, 0, 33, 2, 0.75, 0.1, 6]


def test_the_prefill_of_a_whole_request_counts_as_one_and_a_decode_does_not() -> None:
    metrics = StageMetrics("both", "worker_0")
    ends = [
        Finished(request_id="a", reason="stop", queue_s=0.5, compute_s=1.0),
        Finished(request_id="b", reason="stop"),
    ]
    metrics.record(Events(events=[*ends, Prefilled(request_id="c", handle=b"x")], load=Load()))
    labels = {"stage": "both", "worker": "worker_0"}
    names = ("queue_seconds_count", "queue_seconds_sum", "prefill_seconds_sum")
    assert [metrics.registry.get_sample_value(f"tandem_{name}", labels) for name in names] == [2, 0.5, 1.0]
