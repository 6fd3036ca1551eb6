"""The library's KV events as Tandem's: its hashes are its own, so blocks are named anew by the tokens in the events."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

from tandem.kv.hashes import hash_block, hash_blocks, pack_tokens
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent

log = logging.getLogger(__name__)

SALTS_REMEMBERED = 8192

Place = tuple[Any, int]
"""Where a hash is one block's: attention window and data-parallel rank, and the hash."""


class BlockNames:
    """Names of the blocks that can be reused, by the library's hashes of them. Not thread-safe."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._names: dict[Place, tuple[int, str]] = {}
        """Name and salt."""
        self._count: Counter[int] = Counter()
        """By name: blocks that have it. The library may keep several, for windows and ranks of their own."""
        self._salts: OrderedDict[bytes, str] = OrderedDict()
        """By a first block's tokens: the salt of the last request that began so. Events do not tell it."""
        self._next_id: int | None = None

    def __len__(self) -> int:
        return len(self._count)

    def __contains__(self, name: int) -> bool:
        return name in self._count

    def count_unread(self, token_ids: list[int], salt: str) -> int:
        """How many of a prompt's tokens have to be read. The last one always has."""
        cached = 0
        for name in hash_blocks(token_ids[:-1], self._block_size, salt):
            if name not in self._count:
                break
            cached += self._block_size
        return len(token_ids) - cached

    def expect(self, prompt: list[int], salt: str) -> None:
        """Note the salt of a request that is about to store its blocks."""
        first = pack_tokens(prompt[: self._block_size])
        if not salt and first not in self._salts:
            return
        self._salts[first] = salt
        self._salts.move_to_end(first)
        if len(self._salts) > SALTS_REMEMBERED:
            self._salts.popitem(last=False)

    def take(self, event: Mapping[str, Any]) -> list[KvEvent]:
        """What one event of the library means. Where some were lost, all that was known is forgotten."""
        changes = self._notice_gap(event)
        data = event["data"]
        where = (event.get("window_size"), event.get("attention_dp_rank"))
        if data["type"] == "stored":
            stored = self._store(where, data)
            changes += [BlocksStored(hashes=stored)] if stored else []
        elif data["type"] == "removed":
            removed = self._remove([(where, each) for each in data["block_hashes"]])
            changes += [BlocksRemoved(hashes=removed)] if removed else []
        return changes

    def _notice_gap(self, event: Mapping[str, Any]) -> list[KvEvent]:
        number = event.get("event_id")
        if number is None or event.get("attention_dp_rank"):  # ranks number their own
            return []
        expected, self._next_id = self._next_id, number + 1
        if expected is None or number == expected or not self._count:
            return []
        log.warning("KV events %d to %d were lost: cached blocks are forgotten", expected, number - 1)
        forgotten = list(self._count)
        self._names.clear()
        self._count.clear()
        return [BlocksRemoved(hashes=forgotten)]

    def _store(self, where: Any, data: Mapping[str, Any]) -> list[int]:
        """Names that are new. Blocks that are not full have none, and neither has what follows an unknown one."""
        new: list[int] = []
        before = data["parent_hash"]
        known = self._names.get((where, before))
        for block in data["blocks"]:
            if (before is not None and known is None) or len(block["tokens"]) != self._block_size:
                break
            tokens = pack_tokens([each["token_id"] for each in block["tokens"]])
            salt = known[1] if known else self._salts.get(tokens, "")
            name = hash_block(known[0] if known else None, tokens, salt)
            before = block["block_hash"]
            known = (name, salt)
            if (where, before) not in self._names:
                self._names[where, before] = known
                self._count[name] += 1
                if self._count[name] == 1:
                    new.append(name)
        return new

    def _remove(self, places: list[Place]) -> list[int]:
        gone = []
        for place in places:
            known = self._names.pop(place, None)
            if known is None:
                continue
            self._count[known[0]] -= 1
            if not self._count[known[0]]:
                del self._count[known[0]]
                gone.append(known[0])
        return gone
