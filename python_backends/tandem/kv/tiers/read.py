"""One read under way: blocks come in their order, until one is missing or nobody waits any more."""

from __future__ import annotations

import threading
from collections.abc import Callable


class TierRead:
    """The reading thread delivers, the engine closes. After ``close`` nothing is written to the blocks any more."""

    def __init__(self, digests: list[bytes], block_ids: list[int], deadline: float) -> None:
        """``deadline``: until then it is waited for (monotonic clock)."""
        self.digests, self.block_ids = digests, block_ids
        self._deadline = deadline
        self._lock = threading.Lock()
        self._arrived = 0
        self._ended = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody waits any more."""
        return self._closed

    def deliver(self, copy: Callable[[int], None]) -> bool:
        """Have ``copy`` write the next block, whose id it is given; False: it came too late, and was not called."""
        with self._lock:
            if self._closed:
                return False
            copy(self.block_ids[self._arrived])
            self._arrived += 1
            return True

    def end(self) -> None:
        """No more blocks come."""
        self._ended = True

    def is_over(self, now: float) -> bool:
        """Whether there is nothing to wait for any more."""
        return self._ended or now > self._deadline

    def close(self) -> int:
        """Take what is there: the number of blocks, from the first one on. Waits for one block's copy at most."""
        with self._lock:
            self._closed = True
            return self._arrived
