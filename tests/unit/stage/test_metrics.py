"""What a stage tells Prometheus of its KV blocks."""

from __future__ import annotations

from tandem.messages import Events, Finished, Load, Prefilled, TierLoad
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
