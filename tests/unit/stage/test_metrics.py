"""What a stage tells Prometheus of its KV blocks."""

from __future__ import annotations

from tandem.messages import Events, Finished, Load, Prefilled
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
