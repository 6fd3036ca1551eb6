"""KV blocks, their reuse, and the events that tell of it.

As in the real library: a block is named by a hash that nobody outside can compute, events carry its tokens; where a
request ends, its last block is stored as well though it is not full; the salt is in the hash, and not in the event.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tensorrt_llm._sequence import Sequence


@dataclass(eq=False)
class Block:
    """One block; with a name once others may reuse it."""

    name: int | None = None
    before: Block | None = None
    users: int = 0
    used_at: int = 0


class Blocks:
    """All blocks of an engine. Not for several threads."""

    def __init__(
        self, count: int, size: int, reuse: bool, partial: bool, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self.count = count
        self.size = size
        self.reused = self.missed = self.allocated = self.fresh = 0
        self._reuse = reuse
        self._partial = partial
        self._tell = tell
        self._stored: dict[int, Block] = {}
        self._private = 0
        self._clock = 0
        self._event_id = 0
        self._say({"type": "created", "num_blocks_per_cache_level": [count, 0]})

    @property
    def used(self) -> int:
        """Held by requests, each once; what is kept for reuse alone counts as free."""
        return self._private + sum(block.users > 0 for block in self._stored.values())

    def take(self, sequence: Sequence) -> bool:
        """All blocks that a request may come to need, reused ones first; False: there is no room now."""
        names = self._names(sequence.prompt[:-1], sequence.salt, partial=False)
        found = [self._stored[name] for name, _ in _while_in(names, self._stored)] if self._reuse else []
        need = -(-(len(sequence.prompt) + sequence.max_tokens) // self.size) - len(found)
        for block in found:
            block.users += 1
        while self._private + len(self._stored) + need > self.count:
            if not self._evict():
                for block in found:
                    block.users -= 1
                return False
        self._private += need
        sequence.blocks = found + [Block(users=1) for _ in range(need)]
        sequence.cached_tokens = len(found) * self.size
        self.reused += len(found)
        self.missed += len(names) - len(found)
        sequence.unread = len(sequence.prompt) - sequence.cached_tokens
        self.allocated += len(sequence.blocks)
        self.fresh += need
        return True

    def store(self, sequence: Sequence, *, ended: bool) -> None:
        """Let others reuse what a request has filled: whole blocks, and at its end the last one, too."""
        if not self._reuse:
            return
        tokens = [*sequence.prompt, *sequence.answer][:-1]
        names = self._names(tokens, sequence.salt, partial=ended and self._partial)
        parent: Block | None = None
        new: list[tuple[Block, list[int]]] = []
        for index, (name, part) in enumerate(names):
            known = self._stored.get(name)
            mine = sequence.blocks[index]
            if known is None:
                mine.name, mine.before = name, parent
                self._stored[name] = mine
                self._private -= 1
                new.append((mine, part))
            elif known is not mine and mine.name is None:
                self._private -= 1
                known.users += 1
                sequence.blocks[index] = known
            parent = self._stored[name]
        if new:
            first = new[0][0].before
            self._say({
                "type": "stored",
                "parent_hash": first.name if first else None,
                "blocks": [_stored_block(block.name, part) for block, part in new],
            })  # fmt: skip

    def release(self, sequence: Sequence) -> None:
        """A request needs its blocks no more."""
        self._clock += 1
        for block in sequence.blocks:
            block.users -= 1
            block.used_at = self._clock
            if block.name is None:
                self._private -= 1
        sequence.blocks = []

    def _evict(self) -> bool:
        parents = {id(block.before) for block in self._stored.values()}
        leaves = [block for block in self._stored.values() if not block.users and id(block) not in parents]
        if not leaves:
            return False
        oldest = min(leaves, key=lambda block: block.used_at)
        assert oldest.name is not None
        del self._stored[oldest.name]
        self._say({"type": "removed", "block_hashes": [oldest.name]})
        return True

    def _names(self, tokens: list[int], salt: str, *, partial: bool) -> list[tuple[int, list[int]]]:
        end = len(tokens) if partial else len(tokens) - len(tokens) % self.size
        names, state = [], blake2b(salt.encode(), digest_size=8, person=b"fake-trtllm").digest()
        for start in range(0, end, self.size):
            part = tokens[start : min(start + self.size, end)]
            state = blake2b(state + struct.pack(f"<{len(part)}I", *part), digest_size=8).digest()
            names.append((int.from_bytes(state, "little"), part))
        return names

    def _say(self, data: dict[str, Any]) -> None:
        self._tell({"event_id": self._event_id, "data": data, "window_size": self.count * self.size})
        self._event_id += 1


def _while_in(names: list[tuple[int, list[int]]], stored: dict[int, Block]) -> list[tuple[int, list[int]]]:
    known = []
    for each in names:
        if each[0] not in stored:
            break
        known.append(each)
    return known


def _stored_block(name: int | None, tokens: list[int]) -> dict[str, Any]:
    return {
        "type": "stored_block",
        "block_hash": name,
        "tokens": [{"type": "unique_token", "token_id": each, "token_extra_id": 0} for each in tokens],
        "cache_level": 0,
        "priority": 35,
    }
