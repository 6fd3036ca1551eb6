"""Blocks in the host's memory, for devices that have their own; above files where both are wanted.

What the host's memory gives up goes down to the files, and what is found only there is read from there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from tandem.kv.tiers.memory import Bytes
from tandem.kv.tiers.store import Store


class HostStore:
    """A ``Store`` in one allocation."""

    def __init__(self, memory: Bytes, block_bytes: int, below: Store | None = None) -> None:
        """``memory`` holds ``len(memory) // block_bytes`` blocks, at least one."""
        self._slots = memory[: len(memory) // block_bytes * block_bytes].reshape(-1, block_bytes)
        if not len(self._slots):
            raise ValueError(f"{len(memory)} bytes hold no KV block; one takes {block_bytes} bytes")
        self._below = below
        self.capacity = len(self._slots) + (below.capacity if below else 0)
        self._lock = threading.Lock()
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        """Least recently used first."""
        self._free = list(range(len(self._slots)))

    @property
    def blocks(self) -> int:
        """Blocks it holds itself."""
        return len(self._slot_of)

    def holds(self, digest: bytes) -> bool:
        """As in ``Store``; below counts."""
        return digest in self._slot_of or (self._below is not None and self._below.holds(digest))

    def put(self, digest: bytes, data: Bytes) -> bool:
        """As in ``Store``. What cannot go down is given up."""
        if digest in self._slot_of:
            return True
        oldest = None if self._free else self._send_down()
        with self._lock:
            slot = self._free.pop() if oldest is None else self._slot_of.pop(oldest)
            self._slots[slot] = data
            self._slot_of[digest] = slot
        return True

    def get(self, digest: bytes, out: Bytes) -> bool:
        """As in ``Store``."""
        with self._lock:
            if (slot := self._slot_of.get(digest)) is not None:
                self._slot_of.move_to_end(digest)
                out[:] = self._slots[slot]
                return True
        return self._below is not None and self._below.get(digest, out)

    def close(self) -> None:
        """As in ``Store``."""
        if self._below is not None:
            self._below.close()

    def _send_down(self) -> bytes:
        """Copy the least recently used block to the store below, if any; in its slot it is found meanwhile."""
        with self._lock:
            oldest, slot = next(iter(self._slot_of.items()))
        if self._below is not None:
            self._below.put(oldest, self._slots[slot])
        return oldest
