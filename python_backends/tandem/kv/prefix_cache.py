"""The block pool that keeps what it has: finished blocks stay for requests that begin with the same tokens.

    free ── reserve ──► held by one ── store ──► held by one or many, and named
      ▲                      │ free                      │ free, by the last of them
      ├──────────────────────┘                           ▼
      └──────── when room is needed ────────── cached: nobody holds it, least recently used first

Stored are whole blocks alone, under the names of ``tandem.kv.hashes``. Those that another worker keeps are spare: they
go before all others do. What comes before a kept block in its chain is kept too.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.kv.blocks import BlockPool, OutOfBlocks
from tandem.kv.hashes import digest_block, hash_block, pack_tokens
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent


class Chain:
    """The whole blocks of one sequence, which may grow at its end; each is named once, when it is asked for."""

    def __init__(self, token_ids: Sequence[int], block_size: int, salt: str, *, keeps: bool = True) -> None:
        """Where not ``keeps``, another worker does: its blocks in a cache are spare."""
        self._token_ids, self._block_size, self.salt, self.keeps = token_ids, block_size, salt, keeps
        self._blocks: list[tuple[int, bytes]] = []
        self._digests: list[bytes] = []

    def __getitem__(self, i: int) -> tuple[int, bytes]:
        """Name and packed tokens of block ``i``, all of whose tokens must be there."""
        while len(self._blocks) <= i:
            first = len(self._blocks) * self._block_size
            tokens = pack_tokens(self._token_ids[first : first + self._block_size])
            before = self._blocks[-1][0] if self._blocks else None
            self._blocks.append((hash_block(before, tokens, self.salt), tokens))
        return self._blocks[i]

    def digest(self, i: int) -> bytes:
        """32 bytes that stand for salt and tokens up to the end of block ``i``: unlike a name, they prove them."""
        while len(self._digests) <= i:
            before = self._digests[-1] if self._digests else None
            self._digests.append(digest_block(before, self[len(self._digests)][1], self.salt))
        return self._digests[i]


@dataclass(frozen=True)
class _Kept:
    """A named block. A name is too short to prove anything: the tokens do, and the block before, which has its own."""

    block: int
    name: int
    tokens: bytes
    before: int | str
    """Serial of the block before; the salt where there is none."""
    serial: int
    """Of this naming, never used again: a block that was removed and came back is not mistaken for what it was."""
    digest: bytes
    """As of ``Chain.digest``; empty where there is no second tier."""


class PrefixCache(BlockPool):
    """A ``BlockPool`` whose blocks can be shared. Thread-safe.

    Whoever holds a named block should hold those before it in its chain, and free all in one call, in their order:
    then tails of chains are evicted before their heads. What is found is right in any case.
    """

    def __init__(self, num_blocks: int, *, enabled: bool = True) -> None:
        """Where not ``enabled``, nothing is ever stored."""
        super().__init__(num_blocks)
        self._enabled = enabled
        self._by_name: dict[int, _Kept] = {}
        self._by_block: dict[int, _Kept] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Named blocks that nobody holds, least recently used first."""
        self._cached_spare: OrderedDict[int, None] = OrderedDict()
        """The spare ones among such blocks."""
        self._spare: set[int] = set()
        """Named blocks that another worker keeps, held or not."""
        self._followers: Counter[int | str] = Counter()
        """By serial: how many named blocks that are not spare come next to it in chains."""
        self._serials = itertools.count(1)
        self._changes: list[KvEvent] = []
        self.on_change: Callable[[], None] | None = None
        """Where there is a second tier: called, with the lock held, when blocks were taken or have become idle."""
        self.on_evict: Callable[[list[bytes]], None] | None = None
        """The same with the digests of blocks that were given up."""

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return self._free + self.cached

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and that are kept for reuse."""
        return len(self._cached) + len(self._cached_spare)

    def reserve(self, chain: Chain, num_blocks: int, most_cached: int, leave: int = 0) -> tuple[list[int], int]:
        """Take ``num_blocks`` blocks for a sequence: first, shared, those of ``chain`` that are here, at most
        ``most_cached``; then new ones, free blocks before cached ones: spare ones, then the least recently used.
        ``leave`` more stay.

        Returns:
            The ids in the order of the sequence, and how many of them hold its KV already.

        Raises:
            OutOfBlocks: too few are free; nothing was taken.
        """
        with self._lock:
            found = self._find(chain, most_cached)
            fresh = num_blocks - len(found)
            room = self.free_count - sum(block in self._cached or block in self._cached_spare for block in found)
            if fresh + leave > room:
                raise OutOfBlocks(fresh + leave, room, self.num_blocks)
            for block in found:
                self._hold(block)
            if chain.keeps:
                for block in found:
                    self._keep(self._by_block[block])
            else:
                self._spare_end(found)
            return found + self._allocate(fresh), len(found)

    def store(self, chain: Chain, block_ids: list[int], first: int, end: int) -> None:
        """Name the blocks ``first`` to ``end`` of a sequence, whose KV is complete and changes no more.

        Where the same block is here already, the caller's is freed, and the other one, held for the caller, takes its
        place in ``block_ids``. A block that is kept stays so, whoever else has it as a spare one.
        """
        if not self._enabled:
            return
        with self._lock:
            before: int | str = chain.salt
            if first:
                if (last := self._by_block.get(block_ids[first - 1])) is None:
                    return  # its name has gone to another text: nobody would find what follows
                before = last.serial
            new = []
            for i in range(first, end):
                name, tokens = chain[i]
                kept = self._by_name.get(name)
                if kept is None or (kept.tokens, kept.before) != (tokens, before):
                    if kept is None:
                        new.append(name)
                    else:
                        self._unname(kept)
                    digest = chain.digest(i) if self.on_evict else b""
                    kept = _Kept(block_ids[i], name, tokens, before, next(self._serials), digest)
                    self._name(kept)
                else:
                    block_ids[i] = self._swap(block_ids[i], kept.block)
                if chain.keeps:
                    self._keep(kept)
                before = kept.serial
            if new:
                self._changes.append(BlocksStored(hashes=new))

    def lend(self, names: Sequence[int], salt: str) -> tuple[list[int], bytes]:
        """Hold, for another worker, the blocks of a chain's first ``names``, as many as are here. Returns them, and
        what ``Chain.digest`` is for the last of them, by the tokens that they are of."""
        with self._lock:
            lent: list[_Kept] = []
            before: int | str = salt
            for name in names:
                kept = self._by_name.get(name)
                if kept is None or kept.before != before:
                    break
                lent.append(kept)
                before = kept.serial
            for kept in lent:
                self._hold(kept.block)
        digest: bytes | None = None
        for kept in lent:
            digest = digest_block(digest, kept.tokens, salt)
        return [kept.block for kept in lent], digest or b""

    def make_spare(self, block_ids: Sequence[int]) -> None:
        """Another worker is about to keep these, the blocks of a chain, which only the caller may hold: from their end
        they become spare, up to one that others hold too, or that a kept block follows."""
        with self._lock:
            self._spare_end(block_ids)

    def oldest_idle(self, count: int, known: Callable[[bytes], bool]) -> list[tuple[int, int, bytes]]:
        """The blocks that are to be given up next, until with the free ones there are ``count``, but for those whose
        digest is ``known``: block, serial, digest. Nobody holds them: their bytes were not written to meanwhile if
        they are ``is_still`` there after they were read.
        """
        with self._lock:
            idle = itertools.chain(self._cached_spare, self._cached)
            oldest = [self._by_block[b] for b in itertools.islice(idle, max(0, count - self._free))]
        return [(kept.block, kept.serial, kept.digest) for kept in oldest if not known(kept.digest)]

    def is_still(self, block: int, serial: int) -> bool:
        """Whether a block has had its name all the time since it was given the serial."""
        with self._lock:
            kept = self._by_block.get(block)
            return kept is not None and kept.serial == serial

    def take_changes(self) -> list[KvEvent]:
        """What was stored and removed since the last call, in its order."""
        with self._lock:
            changes, self._changes = self._changes, []
        return changes

    def _find(self, chain: Chain, most: int) -> list[int]:
        """Blocks at the chain's start that are here, by all of their tokens."""
        found: list[int] = []
        before: int | str = chain.salt
        while self._by_name and len(found) < most:
            name, tokens = chain[len(found)]
            kept = self._by_name.get(name)
            if kept is None or (kept.tokens, kept.before) != (tokens, before):
                break
            found.append(kept.block)
            before = kept.serial
        return found

    def _hold(self, block: int) -> None:
        self._cached.pop(block, None)
        self._cached_spare.pop(block, None)
        self._holders[block] += 1

    def _swap(self, own: int, other: int) -> int:
        """Hold ``other`` in place of ``own``."""
        self._hold(other)
        self._holders[own] -= 1
        if not self._holders[own]:
            self._release([own])
        return other

    def _name(self, kept: _Kept) -> None:
        """Spare until somebody keeps it."""
        self._by_name[kept.name] = self._by_block[kept.block] = kept
        self._spare.add(kept.block)

    def _keep(self, kept: _Kept) -> None:
        """A named block is not spare, or not any more."""
        if kept.block in self._spare:
            self._spare.remove(kept.block)
            self._followers[kept.before] += 1

    def _unkeep(self, kept: _Kept) -> None:
        """A named block is spare, or about to lose its name."""
        if kept.block not in self._spare:
            self._spare.add(kept.block)
            self._followers[kept.before] -= 1
            if not self._followers[kept.before]:
                del self._followers[kept.before]

    def _spare_end(self, block_ids: Sequence[int]) -> None:
        for block in reversed(block_ids):
            kept = self._by_block.get(block)
            if kept is None or self._holders[block] > 1 or self._followers[kept.serial]:
                return
            self._unkeep(kept)

    def _forget(self, kept: _Kept) -> None:
        self._unkeep(kept)
        self._spare.remove(kept.block)
        del self._by_name[kept.name], self._by_block[kept.block]

    def _unname(self, kept: _Kept) -> None:
        """The name goes to another block: a chain that was broken came back whole, or two texts share a name."""
        self._forget(kept)
        for idle in (self._cached, self._cached_spare):
            if kept.block in idle:
                del idle[kept.block]
                self._give_all([kept.block])

    def _release(self, blocks: list[int]) -> None:
        """Named blocks stay, the end of a chain to be evicted before its start."""
        for block in reversed(blocks):
            if block in self._by_block:
                (self._cached_spare if block in self._spare else self._cached)[block] = None
        super()._release([block for block in blocks if block not in self._by_block])
        if self.on_change:
            self.on_change()

    def _allocate(self, n: int) -> list[int]:
        if n > self.free_count:
            raise OutOfBlocks(n, self.free_count, self.num_blocks)
        if n > self._free:
            self._evict(n - self._free)
        if self.on_change:
            self.on_change()
        return super()._allocate(n)

    def _evict(self, n: int) -> None:
        spare = [self._cached_spare.popitem(last=False)[0] for _ in range(min(n, len(self._cached_spare)))]
        others = [self._cached.popitem(last=False)[0] for _ in range(n - len(spare))]
        for blocks in filter(None, (spare, others)):
            gone = [self._by_block[block] for block in blocks]
            for kept in gone:
                self._forget(kept)
            if self.on_evict:
                self.on_evict([kept.digest for kept in gone])
            self._changes.append(BlocksRemoved(hashes=[kept.name for kept in gone], spare=blocks is spare))
        self._give_all(sorted(spare + others))
