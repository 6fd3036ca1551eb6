"""The threads of the second tier: one copies out what the fast memory is about to give up, one reads back.

    fast memory ── oldest idle blocks, ahead of their eviction ──► store      (writer)
    store ── blocks of a prompt, where that is quicker than computing ──► blocks of its sequence      (reader)

The engine's loop waits for neither. A block that has to make room before it was copied is dropped. The writer does not
hold what it copies: where the block has changed hands meanwhile, the copy is thrown away. The reader reads into memory
of its own and checks it there; so KV memory never sees a byte that is wrong, or late.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from tandem.kv.prefix_cache import Chain, PrefixCache
from tandem.kv.tiers.disk import DiskStore
from tandem.kv.tiers.host import HostStore
from tandem.kv.tiers.memory import BlockMemory, Bytes
from tandem.kv.tiers.read import TierRead
from tandem.kv.tiers.store import Store
from tandem.kv.tiers.worth import Worth
from tandem.messages import TierLoad

AHEAD = 2
"""One in so many of the fast memory's blocks is kept free, or copied and ready to be given up."""
MOST_READS = 64
"""Reads that may wait; what comes then is computed."""
STUCK_S = 0.5
"""A block that has been read for so long has met a disk that hangs: nobody else waits for it."""
PAUSE_S = 0.5
"""Where nothing can be written, the next try is after so long."""
STOP_TIMEOUT_S = 5.0


class SecondTier:
    """See the module. Public methods are thread-safe and do not wait, but start and stop."""

    def __init__(
        self,
        pool: PrefixCache,
        writer: BlockMemory,
        reader: BlockMemory,
        host: HostStore | None,
        disk: DiskStore | None,
        worth: Worth,
    ) -> None:
        """At least one of ``host`` and ``disk``; the host's is above the disk. ``writer`` and ``reader`` copy from and
        to the pool's blocks, each for its thread."""
        store = host or disk
        if store is None:
            raise ValueError("a second tier needs the host's memory or a disk")
        self._store: Store = store
        self._pool, self._host, self._disk, self._worth = pool, host, disk, worth
        self._block_bytes = writer.block_bytes
        self._threads = [
            threading.Thread(target=self._write_all, args=(writer,), name="kv-tier-writer", daemon=True),
            threading.Thread(target=self._read_all, args=(reader,), name="kv-tier-reader", daemon=True),
        ]
        self._wake = threading.Event()
        self._reads: queue.SimpleQueue[TierRead | None] = queue.SimpleQueue()
        self._waiting: dict[TierRead, int] = {}
        """Reads that have not ended, with their blocks."""
        self._reading_since: float | None = None
        self._stopping = False
        self._ahead = max(1, min(pool.num_blocks // AHEAD, store.capacity // 2))
        """So many; not so many that one that was just written makes room for another of them."""
        self._hits = self._misses = self._dropped = 0
        self.on_read: Callable[[], None] = lambda: None
        """Called from the reader when a read has ended."""
        pool.on_change = self._wake.set
        pool.on_evict = self._note_evicted

    def start(self) -> None:
        """Begin; what earlier processes have left is found in a moment."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what is not written by now is lost. A disk that hangs is not waited for."""
        self._stopping = True
        self._wake.set()
        self._reads.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_TIMEOUT_S)

    def begin_read(self, chain: Chain, block_ids: list[int], first: int, end: int) -> TierRead | None:
        """Read blocks ``first`` to ``end`` of a sequence to its ``block_ids``, as far as they are here and that is
        quicker than computing them. None: nothing is read."""
        found: list[bytes] = []
        while first + len(found) < end and self._store.holds(digest := chain.digest(first + len(found))):
            found.append(digest)
        now = time.monotonic()
        waiting = sum(self._waiting.copy().values())
        count = self._worth.blocks_to_read(len(found), waiting, now) if self._takes_reads(now) else 0
        self._misses += max(0, end - first) - count
        if not count:
            return None
        read = TierRead(found[:count], block_ids[first : first + count], now + self._worth.wait_s(count))
        self._waiting[read] = count
        self._reads.put(read)
        return read

    def read_ended(self, read: TierRead, arrived: int) -> None:
        """Count what a read has come to."""
        self._hits += arrived
        self._misses += len(read.block_ids) - arrived

    @property
    def load(self) -> TierLoad:
        """What there is, and what has happened since the start."""
        host, disk = self._host.blocks if self._host else 0, self._disk.blocks if self._disk else 0
        return TierLoad(
            block_bytes=self._block_bytes,
            host_blocks=host,
            host_bytes=host * self._block_bytes,
            disk_blocks=disk,
            disk_bytes=disk * self._disk.file_bytes if self._disk else 0,
            hits=self._hits,
            misses=self._misses,
            corrupt=self._disk.corrupt if self._disk else 0,
            dropped=self._dropped,
            errors=self._disk.errors if self._disk else 0,
        )

    # ------------------------------------------------------------ writing

    def _write_all(self, memory: BlockMemory) -> None:
        staging = memory.allocate(memory.block_bytes)
        if self._disk is not None:
            self._disk.open()
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while not self._stopping and (idle := self._pool.oldest_idle(self._ahead, self._store.holds)):
                for block, serial, digest in idle:
                    if not self._stopping and not self._write(memory, staging, block, serial, digest):
                        time.sleep(PAUSE_S)
                        break
        self._store.close()

    def _write(self, memory: BlockMemory, staging: Bytes, block: int, serial: int, digest: bytes) -> bool:
        """Whether the next one can be written."""
        memory.copy_out(block, staging)
        if not self._pool.is_still(block, serial):
            return True  # the copy is of another block, or torn
        return self._store.put(digest, staging)

    def _note_evicted(self, digests: list[bytes]) -> None:
        self._dropped += sum(not self._store.holds(digest) for digest in digests)

    # ------------------------------------------------------------ reading

    def _read_all(self, memory: BlockMemory) -> None:
        staging = memory.allocate(memory.block_bytes)
        while (read := self._reads.get()) is not None:
            self._read(memory, staging, read)
            del self._waiting[read]
            read.end()
            self.on_read()

    def _takes_reads(self, now: float) -> bool:
        since = self._reading_since
        return len(self._waiting) < MOST_READS and (since is None or now - since < STUCK_S)

    def _read(self, memory: BlockMemory, staging: Bytes, read: TierRead) -> None:
        for digest in read.digests:
            if read.closed or self._stopping:
                return
            began = self._reading_since = time.monotonic()
            found = self._store.get(digest, staging)
            self._reading_since = None
            if not found or not read.deliver(lambda block: memory.copy_in(block, staging)):
                return
            now = time.monotonic()
            self._worth.measured(now - began, now)
