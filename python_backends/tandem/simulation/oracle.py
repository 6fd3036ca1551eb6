"""What could be found at best: by one prefix cache of all memory, or by a router that knew all that workers hold."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from tandem.kv.hashes import Hashes
from tandem.messages import BlocksStored, KvEvent
from tandem.simulation.trace import TRACE_BLOCK, Arrival


def oracle_hit_rate(traffic: Iterable[Arrival], num_blocks: int) -> float:
    """Share of all prompt tokens that one cache of ``num_blocks`` trace blocks would hold when they arrive; the least
    recently used make room. As in an engine, the last token of a prompt is always read, and so is its block."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for arrival in traffic:
        total += arrival.num_tokens
        whole = arrival.blocks[: arrival.num_tokens // TRACE_BLOCK]
        hits += _tokens_found(whole, arrival.num_tokens, cache.__contains__)
        for name in reversed(whole):  # the end of a chain goes before its start
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > num_blocks:
            cache.popitem(last=False)
    return hits / total if total else 0.0


class SharedView:
    """All workers' caches as one, as they are at this moment."""

    def __init__(self) -> None:
        self._holders: Counter[int] = Counter()
        """By block hash."""

    def take(self, changes: Iterable[KvEvent]) -> None:
        """What a worker's cache has stored and removed."""
        for change in changes:
            each = 1 if isinstance(change, BlocksStored) else -1
            for name in change.hashes:
                self._holders[name] += each

    def find(self, hashes: Hashes, num_tokens: int) -> int:
        """Tokens of a prompt whose KV is there, given the hashes of its whole blocks. Its last one is always read."""
        return _tokens_found(hashes.tolist(), num_tokens, lambda name: self._holders.get(name, 0) > 0)


def _tokens_found(names: Sequence[int], num_tokens: int, is_there: Callable[[int], bool]) -> int:
    """Of a prompt whose whole blocks have these names: the tokens at its start whose blocks are there."""
    found = next((i for i, name in enumerate(names) if not is_there(name)), len(names))
    return TRACE_BLOCK * min(found, (num_tokens - 1) // TRACE_BLOCK)
