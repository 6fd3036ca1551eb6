"""The workers of a deployment as one orchestrator knows them: greeted, checked against each other, introduced."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import NamedTuple, TypeVar

from tandem.deployment import Deployment, Worker
from tandem.errors import TandemError
from tandem.kv.handle import require_compatible
from tandem.kv.hashes import hash_blocks
from tandem.lanes.client import LaneClient
from tandem.lanes.transport import Transport
from tandem.messages import Pair, PollReply
from tandem.orchestrator.health_watch import HealthWatch
from tandem.routing.router import Plan, Route, Router

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_S = 0.5
WORKER_WAIT_S = 30.0
"""How long a request waits for workers when there are none."""
MEETING_S = 10.0
"""After the start, how long workers may take to meet before one does the work of two."""


class Assignment(NamedTuple):
    """The workers that a request got."""

    prefill: LaneClient | None
    """None: the decode worker does both stages."""
    decode: LaneClient
    route: Route
    plan: Plan
    """Why these."""


class Fleet:
    """All lanes of one orchestrator. Lives in its event loop."""

    def __init__(self, deployment: Deployment, transport: Callable[[Worker], Transport]) -> None:
        self._deployment = deployment
        self._transport = transport
        self._lanes: dict[str, LaneClient] = {}
        self._lane_id = uuid.uuid4().hex
        self._block_size = deployment.kv.block_size
        self._router = Router(deployment.routing, self._block_size, seed=int(self._lane_id, 16))
        self._strangers = {
            frozenset((p.name, d.name)) for p in deployment.workers("prefill") for d in deployment.workers("decode")
        }
        """Pairs of workers that have not met yet."""
        self._health = HealthWatch(deployment, self._router, self._spawn)
        self._changed = asyncio.Event()
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Open a lane to every worker."""
        loop = asyncio.get_running_loop()
        for worker in self._deployment.worker:
            self._router.add(worker.name, worker.stage)
            client = LaneClient(self._lane_id, worker, self._transport(worker), loop, self)
            self._lanes[worker.name] = client
        for client in self._lanes.values():
            client.start()
        self._meeting_ends = time.monotonic() + MEETING_S
        self._spawn(self._watch())

    def stop(self) -> None:
        """Close all lanes; from a thread that is not the event loop's. Nothing may be called afterwards."""
        self._stopped = True
        for lane in self._lanes.values():
            lane.stop()

    # -------------------------------------------------------------- where a request goes

    async def max_model_len(self) -> int:
        """Most tokens of prompt and answer together that all workers take. Waits a little while there is no worker.

        Raises:
            TandemError: ``worker_lost`` when there is still none.
        """

        def least() -> int:
            known = [lane.info.max_model_len for lane in self._lanes.values() if lane.info]
            if not known:
                raise TandemError("worker_lost", "no worker is ready; try again shortly")
            return min(known)

        return await self._patiently(least)

    async def plan(
        self,
        token_ids: list[int],
        max_tokens: int,
        *,
        avoid: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Plan:
        """Where a request would go now; to those of ``avoid`` only where there is nobody else. Waits while there are no
        workers: one that starts again is back within seconds.

        Raises:
            TandemError: ``worker_lost`` when there are still none.
        """
        hashes = hash_blocks(token_ids, self._block_size)

        def attempt() -> Plan:
            if avoid:
                with suppress(TandemError):
                    return self._plan_now(hashes, len(token_ids), max_tokens, avoid)
            return self._plan_now(hashes, len(token_ids), max_tokens, ())

        return await self._patiently(attempt, patience_s)

    def _plan_now(self, hashes: list[int], num_tokens: int, max_tokens: int, avoid: Collection[str]) -> Plan:
        now = time.monotonic()
        have_met = not self._strangers or now >= self._meeting_ends
        return self._router.plan(hashes, num_tokens, max_tokens, now, stand_in=have_met, avoid=avoid)

    async def route(
        self,
        token_ids: list[int],
        max_tokens: int,
        *,
        avoid: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Assignment:
        """The workers for a request; what it takes of them counts until its route ends. Else as ``plan``."""
        return self._assign(await self.plan(token_ids, max_tokens, avoid=avoid, patience_s=patience_s))

    def route_now(self, token_ids: list[int], max_tokens: int, avoid: Collection[str]) -> Assignment | None:
        """Likewise without those of ``avoid`` and without waiting; None where that leaves nobody."""
        try:
            hashes = hash_blocks(token_ids, self._block_size)
            return self._assign(self._plan_now(hashes, len(token_ids), max_tokens, avoid))
        except TandemError:
            return None

    def _assign(self, plan: Plan) -> Assignment:
        route = self._router.commit(plan, time.monotonic())
        prefill, decode = plan.workers
        return Assignment(self._lanes[prefill] if prefill else None, self._lanes[decode], route, plan)

    async def _patiently(self, attempt: Callable[[], T], patience_s: float | None = None) -> T:
        """What ``attempt`` gives, tried again whenever workers come or meet, as long as a request waits."""
        deadline = time.monotonic() + (WORKER_WAIT_S if patience_s is None else patience_s)
        while True:
            self._changed.clear()
            try:
                return attempt()
            except TandemError:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                await self._next_change(min(left_s, WATCH_S))

    async def _next_change(self, timeout_s: float) -> None:
        # Not wait_for: up to Python 3.11 it swallows a cancellation that comes together with what it waits for.
        waiting = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            waiting.cancel()

    # -------------------------------------------------------------- what lanes tell (a ``LaneObserver``)

    def greeted(self, lane: LaneClient) -> None:
        """A worker is there: the router hears of it, and all workers of the other stage are introduced to it."""
        assert lane.info is not None
        log.info("worker %s joined, epoch %x", lane.worker.name, lane.info.epoch)
        self._router.join(lane.worker.name, lane.info, lane.load)
        self._health.greeted(lane)
        lane.kv_from = 1
        self._changed.set()
        for other in self._lanes.values():
            if other.worker.stage != lane.worker.stage and other.info is not None:
                self._spawn(self._introduce(lane, other))

    def polled(self, lane: LaneClient, reply: PollReply) -> None:
        """A worker says how it does, and what its cache holds."""
        if lane.info is not None and lane.info.epoch == reply.epoch:
            lane.kv_from = self._router.report(lane.worker.name, reply.epoch, reply.load, reply.kv)
            self._health.polled(lane, reply)

    def lost(self, lane: LaneClient) -> None:
        """A worker is gone."""
        lane.kv_from = None
        self._router.lose(lane.worker.name)

    # -------------------------------------------------------------- how workers meet

    async def _introduce(self, one: LaneClient, other: LaneClient) -> None:
        """Check that two workers fit, then tell each of the other."""
        mine, theirs = one.info, other.info
        if mine is None or theirs is None:
            return
        try:
            require_compatible(mine, theirs)
            await asyncio.gather(one.call(Pair(peer=theirs)), other.call(Pair(peer=mine)))
        except TandemError as error:
            log.error("workers %s and %s cannot work together: %s", one.worker.name, other.worker.name, error)
        else:
            if one.info is mine and other.info is theirs:
                self._router.pair(one.worker.name, other.worker.name)
                log.info("workers %s and %s are paired", one.worker.name, other.worker.name)
        self._strangers.discard(frozenset((one.worker.name, other.worker.name)))
        self._changed.set()

    async def _watch(self) -> None:
        while not self._stopped:
            await asyncio.sleep(WATCH_S)
            for lane in self._lanes.values():
                lane.fail_if_silent()
                self._health.check(lane)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)
