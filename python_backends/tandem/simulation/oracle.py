"""What a prefix cache could find at best: all workers' memory as one cache, of which every request sees all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from tandem.simulation.trace import TRACE_BLOCK, Arrival


def oracle_hit_rate(traffic: Iterable[Arrival], num_blocks: int) -> float:
    """Share of all prompt tokens that one cache of ``num_blocks`` trace blocks would hold when they arrive; the least
    recently used make room. As in an engine, the last token of a prompt is always read, and so is its block."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for arrival in traffic:
        total += arrival.num_tokens
        whole = arrival.blocks[: arrival.num_tokens // TRACE_BLOCK]
        found = next((i for i, name in enumerate(whole) if name not in cache), len(whole))
        hits += TRACE_BLOCK * min(found, (arrival.num_tokens - 1) // TRACE_BLOCK)
        for name in reversed(whole):  # the end of a chain goes before its start
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > num_blocks:
            cache.popitem(last=False)
    return hits / total if total else 0.0
