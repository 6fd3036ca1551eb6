"""Leases: prefilled KV blocks that wait to be pulled. Each ends once: by confirmation, cancellation or time.

    granted ── confirm ──► redeemed        (a second confirm: handle_used)
       ├────── cancel ───► cancelled       (a later confirm: lease_cancelled)
       └────── time ─────► expired         (a later confirm: lease_expired)

Every end frees the blocks, at once and once. The reader confirms after its read has ended; so a confirmed lease
means that the blocks were untouched during the whole read.

A reader on the same host may claim the lease before its read: nobody else redeems it then (handle_used). Which leases
hold stands in memory that it can see; a word goes before its blocks do. So it sees by itself whether they were
untouched, and nobody waits for its confirmation.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tandem.errors import ErrorCode, TandemError
from tandem.kv.blocks import BlockPool
from tandem.kv.memory import Words

REMEMBERED = 8192
"""Ended leases whose end is remembered; a refusal for an older one says ``lease_unknown``."""

_REFUSALS: dict[ErrorCode, str] = {
    "handle_used": "was redeemed before; a handle is good for one pull, so run the prefill again",
    "lease_cancelled": "was cancelled; its request ended before the blocks were pulled",
    "lease_expired": "ran out before the pull was confirmed; run the prefill again, or raise kv.lease_s",
    "lease_unknown": "is not known to this worker; run the prefill again",
}


@dataclass
class _Lease:
    request_id: str
    block_ids: tuple[int, ...]
    deadline: float
    claimant: str = ""
    """Who alone may redeem it; empty: whoever comes first."""


class LeaseTable:
    """The leases of one worker. Thread-safe, with no threads and no waits of its own."""

    def __init__(
        self,
        pool: BlockPool,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
        words: Words | None = None,
    ) -> None:
        """``clock`` gives seconds that never run backwards. In ``words`` (``HostMemory``) stands which leases hold."""
        self.pool = pool
        self._words = words
        self._lease_s = lease_s
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[int, _Lease] = OrderedDict()
        """In the order of their deadlines, since all leases last equally long."""
        self._leases_of: dict[str, set[int]] = {}
        self._leases_on: Counter[int] = Counter()
        """By block: leases that hold it. A prefix that requests share may be under several."""
        self._ended: OrderedDict[int, ErrorCode] = OrderedDict()
        """Lease id to the code that refuses it from now on."""
        self._granted = 0
        self._expired = 0
        self.on_grant: Callable[[], None] = lambda: None
        """Called after each grant, outside the lock: whoever answers confirmations may have to wake up."""

    @property
    def held(self) -> int:
        """Leases that have not ended."""
        return len(self._held)

    @property
    def granted(self) -> int:
        """Leases granted so far."""
        return self._granted

    @property
    def expired(self) -> int:
        """Leases that ran out so far."""
        return self._expired

    def grant(self, request_id: str, block_ids: Sequence[int]) -> int:
        """Take over the caller's hold of blocks, until the lease ends. Returns the lease id, from 1 up.

        Raises:
            ValueError: a block has no holder beside the leases that it is under already, or is named twice.
        """
        with self._lock:
            counts = Counter(block_ids)
            twice = [b for b, n in counts.items() if n > 1 or self.pool.holders(b) <= self._leases_on[b]]
            if twice:
                raise ValueError(f"blocks {sorted(twice)[:8]} of request {request_id!r} are under lease already")
            self._granted += 1
            lease_id = self._granted
            self._held[lease_id] = _Lease(request_id, tuple(block_ids), self._clock() + self._lease_s)
            self._show(lease_id)
            self._leases_of.setdefault(request_id, set()).add(lease_id)
            self._leases_on.update(block_ids)
        self.on_grant()
        return lease_id

    def end_of(self, lease_id: int) -> ErrorCode | None:
        """How a lease has ended, as the code that refuses it from now on; None while it holds."""
        with self._lock:
            self._expire_overdue()
            return None if lease_id in self._held else self._ended.get(lease_id, "lease_unknown")

    def claim(self, lease_id: int, claimant: str) -> None:
        """From now on nobody but ``claimant`` redeems the lease. It ends as it would have.

        Raises:
            TandemError: as ``confirm``.
        """
        with self._lock:
            self._redeemable(lease_id, claimant).claimant = claimant

    def confirm(self, lease_id: int, claimant: str = "") -> None:
        """End a lease as redeemed by ``claimant`` and free its blocks.

        Raises:
            TandemError: ``handle_used``, ``lease_cancelled``, ``lease_expired`` or ``lease_unknown``; the blocks may
                have changed during the read, so what was read must not be used.
        """
        with self._lock:
            self._redeemable(lease_id, claimant)
            self._end(lease_id, "handle_used")

    def _redeemable(self, lease_id: int, claimant: str) -> _Lease:
        self._expire_overdue()
        lease = self._held.get(lease_id)
        if lease is not None and lease.claimant in ("", claimant):
            return lease
        code = self._ended.get(lease_id, "lease_unknown") if lease is None else "handle_used"
        raise TandemError(code, f"lease {lease_id} {_REFUSALS[code]}")

    def cancel(self, request_ids: Iterable[str]) -> None:
        """End all leases of these requests; unknown ids are no error."""
        with self._lock:
            self._expire_overdue()
            for request_id in request_ids:
                for lease_id in sorted(self._leases_of.get(request_id, ())):
                    self._end(lease_id, "lease_cancelled")

    def expire(self) -> None:
        """End what is overdue. To be called now and then: nothing else frees a lease that nobody asks for."""
        with self._lock:
            self._expire_overdue()

    def _expire_overdue(self) -> None:
        now = self._clock()
        while self._held:
            lease_id, lease = next(iter(self._held.items()))
            if lease.deadline > now:
                return
            self._end(lease_id, "lease_expired")
            self._expired += 1

    def _show(self, lease_id: int) -> None:
        """Where another lease stands in its place, it is not seen to hold: who reads asks then."""
        if self._words is not None and not self._words[lease_id % len(self._words)]:
            self._words[lease_id % len(self._words)] = lease_id

    def _hide(self, lease_id: int) -> None:
        if self._words is not None and self._words[lease_id % len(self._words)] == lease_id:
            self._words[lease_id % len(self._words)] = 0

    def _end(self, lease_id: int, refusal: ErrorCode) -> None:
        self._hide(lease_id)
        lease = self._held.pop(lease_id)
        siblings = self._leases_of[lease.request_id]
        siblings.remove(lease_id)
        if not siblings:
            del self._leases_of[lease.request_id]
        for block in lease.block_ids:
            self._leases_on[block] -= 1
            if not self._leases_on[block]:
                del self._leases_on[block]
        self.pool.free(lease.block_ids)
        self._ended[lease_id] = refusal
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
