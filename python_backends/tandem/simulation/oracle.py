"""What could be found at best: by one prefix cache that all share, or by a router that knew all that workers hold."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from tandem.kv.hashes import Hashes
from tandem.messages import BlocksStored, KvEvent
from tandem.simulation.trace import TRACE_BLOCK, Arrival


def oracle_hit_rate(traffic: Iterable[Arrival], num_blocks: int) -> float:
    """Share of all prompt tokens that one ``SharedCache`` of ``num_blocks`` trace blocks has when they arrive."""
    cache = SharedCache()
    hits = total = 0
    for arrival in traffic:
        total += arrival.num_tokens
        hits += cache.take(arrival, num_blocks)
    return hits / total if total else 0.0


class SharedCache:
    """One prefix cache that every prompt finds, and is stored in whole; the least recently used blocks make room."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, arrival: Arrival, num_blocks: int) -> int:
        """Store a prompt in a cache of ``num_blocks`` trace blocks; returns how many of its tokens were there. As in an
        engine, the last token of a prompt is always read, and so is its block."""
        blocks = self._blocks
        while len(blocks) > num_blocks:
            blocks.popitem(last=False)
        whole = arrival.blocks[: arrival.num_tokens // TRACE_BLOCK]
        found = _tokens_found(whole, arrival.num_tokens, blocks.__contains__)
        for name in reversed(whole):  # the end of a chain goes before its start
            blocks[name] = None
            blocks.move_to_end(name)
        return found


class SharedView:
    """All workers' caches as one, as they are at this moment."""

    def __init__(self) -> None:
        self._holders: Counter[int] = Counter()
        """By block hash; of those that anybody holds."""

    @property
    def size(self) -> int:
        """Blocks that anybody holds, each counted once."""
        return len(self._holders)

    def take(self, changes: Iterable[KvEvent]) -> None:
        """What a worker's cache has stored and removed."""
        for change in changes:
            each = 1 if isinstance(change, BlocksStored) else -1
            for name in change.hashes:
                self._holders[name] += each
                if not self._holders[name]:
                    del self._holders[name]

    def find(self, hashes: Hashes, num_tokens: int) -> int:
        """Tokens of a prompt whose KV is there, given the hashes of its whole blocks. Its last one is always read."""
        return _tokens_found(hashes.tolist(), num_tokens, self._holders.__contains__)


def _tokens_found(names: Sequence[int], num_tokens: int, is_there: Callable[[int], bool]) -> int:
    """Of a prompt whose whole blocks have these names: the tokens at its start whose blocks are there."""
    found = next((i for i, name in enumerate(names) if not is_there(name)), len(names))
    return TRACE_BLOCK * min(found, (num_tokens - 1) // TRACE_BLOCK)
