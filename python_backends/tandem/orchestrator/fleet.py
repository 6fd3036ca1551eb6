"""The workers of a deployment as one orchestrator knows them: found, greeted, checked against each other, introduced,
left when they drain, forgotten when they are gone."""

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
from tandem.kv.handle import find_differences, require_compatible
from tandem.lanes.client import LaneClient
from tandem.lanes.discovery import Discovery, Resolve, resolve_host
from tandem.lanes.replica import Replica
from tandem.lanes.transport import Transport
from tandem.messages import PROTOCOL_VERSION, Lender, Pair, PollReply, Role, Unpair, WorkerInfo, does
from tandem.orchestrator.health_watch import HealthWatch
from tandem.orchestrator.metrics import WorkerState, WorkerView
from tandem.orchestrator.query import Query
from tandem.routing.disaggregation import NOBODY_WAITS, Waiting
from tandem.routing.room import Room
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
    lender: Lender | None = None
    """Whom the prefill worker is to borrow from."""


class Fleet:
    """All lanes of one orchestrator. Lives in its event loop."""

    def __init__(
        self, deployment: Deployment, transport: Callable[[Replica], Transport], resolve: Resolve = resolve_host
    ) -> None:
        self._deployment = deployment
        self._transport = transport
        self._lanes: dict[str, LaneClient] = {}
        self._lane_id = uuid.uuid4().hex
        self._block_size = deployment.kv.block_size
        self._router = Router(deployment.routing, self._block_size, seed=int(self._lane_id, 16))
        self._discovery = Discovery(deployment.worker, self._found, resolve)
        self._addresses: dict[str, set[str]] = {}
        """By entry of the deployment file, as last found."""
        self._ids: dict[str, str] = {}
        """Of workers that have been introduced to others, by name."""
        self._introductions = 0
        """Under way."""
        self._have_met = False
        """Whether there once was a worker of each entry, introduced to the others."""
        self._health = HealthWatch(deployment, self._router, self._spawn)
        self._changed = asyncio.Event()
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Open a lane to every worker that is here, and begin to look for the others."""
        self._loop = asyncio.get_running_loop()
        for worker in self._deployment.workers_here:
            self._open_lane(Replica(worker))
        self._meeting_ends = time.monotonic() + MEETING_S
        self._spawn(self._watch())
        self._looking = self._spawn(self._discovery.run())

    def stop(self) -> None:
        """Close all lanes; from a thread that is not the event loop's. Nothing may be called afterwards."""
        self._stopped = True
        self._loop.call_soon_threadsafe(self._looking.cancel)
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.end()
        for lane in lanes:
            lane.stop()

    @property
    def workers(self) -> list[WorkerView]:
        """All workers as they are seen now."""
        lanes = self._lanes.values()
        return [
            WorkerView(lane.worker.name, lane.worker.stage, self._state(lane), self._router.own(lane.worker.name))
            for lane in lanes
        ]

    def _state(self, lane: LaneClient) -> WorkerState:
        if lane.info is None:
            return "away"
        if lane.draining:
            return "draining"
        return "out" if self._health.is_out(lane.worker.name) else "good"

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

    def query(self, token_ids: list[int], max_tokens: int, salt: str = "") -> Query:
        """What a request asks of the router; ``salt`` is its tenant."""
        return Query(token_ids, max_tokens, self._block_size, salt)

    async def plan(
        self,
        query: Query,
        *,
        waiting: Waiting = NOBODY_WAITS,
        avoid: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Plan:
        """Where a request would go now, given who is ``waiting`` for room; to those of ``avoid`` only where there is
        nobody else. Waits while there are no workers: one that starts again is back within seconds.

        Raises:
            TandemError: ``worker_lost`` when there are still none.
        """

        def attempt() -> Plan:
            if avoid:
                with suppress(TandemError):
                    return self._plan_now(query, waiting, avoid)
            return self._plan_now(query, waiting)

        return await self._patiently(attempt, patience_s)

    def _plan_now(self, query: Query, waiting: Waiting = NOBODY_WAITS, avoid: Collection[str] = ()) -> Plan:
        now = time.monotonic()
        stand_in = self._have_met or now >= self._meeting_ends
        asked = query.hashes, query.num_tokens, query.max_tokens
        return self._router.plan(*asked, now, waiting=waiting, stand_in=stand_in, avoid=avoid)

    async def route(
        self,
        query: Query,
        *,
        waiting: Waiting = NOBODY_WAITS,
        avoid: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Assignment:
        """The workers for a request; what it takes of them counts until its route ends. Else as ``plan``."""
        return self._assign(await self.plan(query, waiting=waiting, avoid=avoid, patience_s=patience_s))

    def route_now(self, query: Query, avoid: Collection[str]) -> Assignment | None:
        """Likewise without those of ``avoid`` and without waiting; None where that leaves nobody."""
        try:
            return self._assign(self._plan_now(query, avoid=avoid))
        except TandemError:
            return None

    def foresee(self, query: Query, waiting: Waiting) -> Plan | None:
        """As ``plan``, without waiting for workers; None where there are none."""
        try:
            return self._plan_now(query, waiting)
        except TandemError:
            return None

    def room(self, kv_share: float) -> Room | None:
        """How much more the workers can take at once; see ``Router.room``."""
        return self._router.room(kv_share)

    def blocks_for(self, prompt_tokens: int, max_tokens: int) -> int:
        """KV blocks that a request is likely to take."""
        return self._router.blocks_for(prompt_tokens, max_tokens)

    def answered(self, max_tokens: int, tokens: int) -> None:
        """An answer of at most ``max_tokens`` has ended after ``tokens``: others are taken to do alike."""
        self._router.answered(max_tokens, tokens)

    def _assign(self, plan: Plan) -> Assignment:
        route = self._router.commit(plan, time.monotonic())
        prefill, decode = plan.workers
        lender = self._lender(*plan.loan) if plan.loan else None
        return Assignment(self._lanes[prefill] if prefill else None, self._lanes[decode], route, plan, lender)

    def _lender(self, name: str, num_tokens: int) -> Lender | None:
        info = self._lanes[name].info
        return None if info is None else Lender(worker_id=info.worker_id, num_tokens=num_tokens)

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

    # -------------------------------------------------------------- who there is

    def _found(self, worker: Worker, addresses: set[str]) -> None:
        """Where the workers of an entry are now. Those that are not found any more stay as long as they answer."""
        if self._stopped:
            return
        self._addresses[worker.name] = addresses
        for address in sorted(addresses):
            if (replica := Replica(worker, address)).name not in self._lanes:
                self._open_lane(replica)

    def _open_lane(self, replica: Replica) -> None:
        self._router.add(replica.name, replica.stage)
        lane = LaneClient(self._lane_id, replica, self._transport(replica), self._loop, self)
        self._lanes[replica.name] = lane
        lane.start()

    async def _watch(self) -> None:
        while not self._stopped:
            await asyncio.sleep(WATCH_S)
            for lane in list(self._lanes.values()):
                lane.fail_if_silent()
                self._health.check(lane)
                if lane.draining and not self._router.own(lane.worker.name):
                    lane.leave()
                if lane.info is None and self._is_unknown(lane.worker):
                    self._forget(lane)

    def _is_unknown(self, replica: Replica) -> bool:
        return replica.address is not None and replica.address not in self._addresses[replica.worker.name]

    def _forget(self, lane: LaneClient) -> None:
        """A worker is gone for good."""
        name = lane.worker.name
        log.info("worker %s is gone: %s", name, lane.trouble)
        del self._lanes[name]
        self._router.remove(name)
        self._health.forget(name)
        self._part(name)
        lane.end()
        self._spawn(asyncio.to_thread(lane.stop))

    def _part(self, name: str) -> None:
        """Whoever was introduced to this worker need not remember it."""
        if (worker_id := self._ids.pop(name, None)) is not None:
            for other in self._lanes.values():
                if other.info is not None and other.worker.name != name:
                    other.tell(Unpair(lane=self._lane_id, worker_id=worker_id))

    # -------------------------------------------------------------- what lanes tell (a ``LaneObserver``)

    def greeted(self, lane: LaneClient) -> None:
        """A worker is there: the router hears of it, and all workers that it can exchange KV with are introduced.

        Raises:
            TandemError: ``worker_incompatible``, naming in what it differs from the deployment or from the others.
        """
        assert lane.info is not None
        name = lane.worker.name
        self._require_fit(lane.worker, lane.info)
        log.info("worker %s joined: %s, epoch %x", name, lane.info.worker_id, lane.info.epoch)
        if self._ids.get(name) != lane.info.worker_id:
            self._part(name)  # another one has taken its address
            self._ids[name] = lane.info.worker_id
        self._router.join(name, lane.info, lane.load)
        self._health.greeted(lane)
        lane.kv_from = 1
        others = [other for other in self._lanes.values() if other is not lane and other.info is not None]
        for other in others:
            if _can_meet(lane.worker.stage, other.worker.stage):
                self._introductions += 1
                self._spawn(self._introduce(lane, other))
        self._note_change()

    def polled(self, lane: LaneClient, reply: PollReply) -> None:
        """A worker says how it does, and what its cache holds."""
        if lane.info is None or lane.info.epoch != reply.epoch:
            return
        lane.kv_from = self._router.report(lane.worker.name, reply.epoch, reply.load, reply.kv)
        self._health.polled(lane, reply)
        if reply.draining and not lane.draining:
            log.info("worker %s drains: it gets nothing new", lane.worker.name)
            lane.draining = True
            self._router.drain(lane.worker.name)

    def lost(self, lane: LaneClient) -> None:
        """A worker is gone."""
        lane.kv_from = None
        self._router.lose(lane.worker.name)

    # -------------------------------------------------------------- how workers meet

    def _require_fit(self, replica: Replica, info: WorkerInfo) -> None:
        """Whether a worker is what the deployment says, and like those that are there already."""
        expected = [
            ("protocol_version", PROTOCOL_VERSION, info.protocol_version),
            ("stage", replica.stage, info.stage),
            ("kv.dtype", self._deployment.model.dtype, info.kv.dtype),
            ("kv.block_size", self._block_size, info.kv.block_size),
        ]
        differences = [
            f"{what} is {ours!r} here and {theirs!r} there" for what, ours, theirs in expected if ours != theirs
        ]
        others = {lane.worker.name: lane.info for lane in self._lanes.values() if lane.worker.name != replica.name}
        for name, other in others.items():
            if other is not None and other.worker_id == info.worker_id:
                differences.append(f"it is {name}, reached by another address")
        peer = next(filter(None, others.values()), None)
        if not differences and peer is not None:
            differences = [f"{problem} (here: {peer.worker_id})" for problem in find_differences(peer, info)]
        if differences:
            raise TandemError("worker_incompatible", "; ".join(differences))

    async def _introduce(self, one: LaneClient, other: LaneClient) -> None:
        """Check that KV can move between two workers, then tell each of the other."""
        mine, theirs = one.info, other.info
        try:
            if mine is None or theirs is None:
                return
            require_compatible(mine, theirs)
            await asyncio.gather(
                one.call(Pair(lane=self._lane_id, peer=theirs)), other.call(Pair(lane=self._lane_id, peer=mine))
            )
            if one.info is mine and other.info is theirs:
                self._router.pair(one.worker.name, other.worker.name)
                log.info("workers %s and %s are paired", one.worker.name, other.worker.name)
        except TandemError as error:
            log.error("workers %s and %s cannot work together: %s", one.worker.name, other.worker.name, error)
        finally:
            self._introductions -= 1
            self._note_change()

    def _note_change(self) -> None:
        """Somebody has come, or two have met."""
        ready = {lane.worker.worker.name for lane in self._lanes.values() if lane.info is not None}
        self._have_met |= len(ready) == len(self._deployment.worker) and not self._introductions
        self._changed.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)
        return task


def _can_meet(one: Role, other: Role) -> bool:
    """Whether KV is ever to move between two workers: one reads prompts, and hands over to the other or borrows."""
    return does(one, "prefill") or does(other, "prefill")
