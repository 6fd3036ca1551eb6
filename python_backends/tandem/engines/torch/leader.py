"""The leader's end of an engine group: gathers what followers have to do, and tells all of it at once."""

from __future__ import annotations

import time
from collections import deque
from typing import TypeVar

from tandem.messages import KvHandle, Orders, PullOrder, ReadEnded, StepPlan, WorkerInfo
from tandem.parallel.group import SIGN_OF_LIFE_S, RankGroup

T = TypeVar("T")


class Leader:
    """Used by the engine's thread, but for ``pair``, ``unpair`` and ``pull``. In a group of one there is nobody to
    tell."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._pairs: deque[WorkerInfo] = deque()
        self._unpairs: deque[str] = deque()
        self._pulls: deque[PullOrder] = deque()
        self._aborts: list[str] = []
        self._leases_held = False
        self._told = 0.0

    @property
    def is_alone(self) -> bool:
        """Whether there are no followers."""
        return self._group.size == 1

    def pair(self, peer: WorkerInfo) -> None:
        """Have all ranks get ready to exchange KV with ``peer``; before any pull that comes after it."""
        self._pairs.append(peer)

    def unpair(self, worker_id: str) -> None:
        """Have all ranks forget a peer."""
        self._unpairs.append(worker_id)

    def pull(self, request_id: str, handle: KvHandle, block_ids: list[int]) -> None:
        """Have followers read their parts."""
        self._pulls.append(PullOrder(request_id=request_id, handle=handle, block_ids=block_ids))

    def abort(self, request_id: str) -> None:
        """Have followers end their parts of a pull."""
        self._aborts.append(request_id)

    def tell(self, leases_held: bool, step: StepPlan | None = None) -> None:
        """Send what there is to say; a sign of life at least, where the last one was a while ago."""
        if self.is_alone:
            return
        now = time.monotonic()
        pairs = [self._pairs.popleft() for _ in range(len(self._pairs))]
        unpairs = [self._unpairs.popleft() for _ in range(len(self._unpairs))]
        pulls = [self._pulls.popleft() for _ in range(len(self._pulls))]
        is_news = pairs or unpairs or pulls or self._aborts or step or leases_held != self._leases_held
        if not is_news and now - self._told < SIGN_OF_LIFE_S:
            return
        orders = Orders(unpair=unpairs, pair=pairs, pull=pulls, abort=self._aborts, leases_held=leases_held, step=step)
        self._aborts, self._leases_held, self._told = [], leases_held, now
        self._group.order(orders)

    def reports(self) -> list[ReadEnded]:
        """What followers have said since the last call."""
        return [] if self.is_alone else self._group.reports()

    def stop(self) -> None:
        """Have followers end in good order."""
        if not self.is_alone:
            self._group.order(Orders(stop=True))
            self._group.part()
