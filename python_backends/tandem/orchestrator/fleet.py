"""The workers of a deployment as one orchestrator knows them: greeted, checked against each other, introduced."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine

from tandem.deployment import Deployment, Worker
from tandem.errors import TandemError
from tandem.kv.handle import require_compatible
from tandem.lanes.client import LaneClient
from tandem.lanes.transport import Transport
from tandem.messages import Pair, StageName, WorkerInfo
from tandem.routing.least_loaded import Candidate, choose

log = logging.getLogger(__name__)

WATCH_S = 0.5
WORKER_WAIT_S = 30.0
"""How long a request waits for workers when there are none."""


class Fleet:
    """All lanes of one orchestrator. Lives in its event loop."""

    def __init__(self, deployment: Deployment, transport: Callable[[Worker], Transport]) -> None:
        self._deployment = deployment
        self._transport = transport
        self._lanes: dict[str, LaneClient] = {}
        self._paired = asyncio.Event()
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Open a lane to every worker."""
        loop = asyncio.get_running_loop()
        lane = uuid.uuid4().hex
        for worker in self._deployment.worker:
            client = LaneClient(lane, worker, self._transport(worker), loop, self._on_greeted)
            self._lanes[worker.name] = client
            client.start()
        self._spawn(self._watch())

    def stop(self) -> None:
        """Close all lanes; from a thread that is not the event loop's. Nothing may be called afterwards."""
        self._stopped = True
        for lane in self._lanes.values():
            lane.stop()

    async def route(self) -> tuple[LaneClient, LaneClient]:
        """A prefill and a decode worker between which KV can move. Waits a little while there are none: a worker that
        starts again is back within seconds.

        Raises:
            TandemError: ``worker_lost`` when there are still none.
        """
        deadline = time.monotonic() + WORKER_WAIT_S
        while True:
            self._paired.clear()
            try:
                prefill = self._choose("prefill")
                return prefill, self._choose("decode", partner=prefill)
            except TandemError:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                await self._next_pairing(min(left_s, WATCH_S))

    async def _next_pairing(self, timeout_s: float) -> None:
        # Not wait_for: up to Python 3.11 it swallows a cancellation that comes together with what it waits for.
        waiting = asyncio.ensure_future(self._paired.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            waiting.cancel()

    def _choose(self, stage: StageName, partner: LaneClient | None = None) -> LaneClient:
        """The worker of a stage that gets the next request; one that is paired with ``partner``, where given."""
        candidates = [
            Candidate(
                name=worker.name,
                healthy=lane.healthy and _paired(lane, partner),
                outstanding=lane.outstanding,
                queued=lane.load.queued,
                running=lane.load.running,
            )
            for worker in self._deployment.workers(stage)
            for lane in (self._lanes[worker.name],)
        ]
        return self._lanes[choose(stage, candidates)]

    # -------------------------------------------------------------- how workers meet

    def _on_greeted(self, newcomer: LaneClient) -> None:
        log.info("worker %s joined, epoch %x", newcomer.worker.name, newcomer.info.epoch if newcomer.info else 0)
        for other in self._lanes.values():
            if other.worker.stage != newcomer.worker.stage and other.info is not None:
                self._spawn(self._introduce(newcomer, other))

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
            return
        if one.info is mine and other.info is theirs:
            one.paired_with.add(_identity(theirs))
            other.paired_with.add(_identity(mine))
            log.info("workers %s and %s are paired", one.worker.name, other.worker.name)
            self._paired.set()

    async def _watch(self) -> None:
        while not self._stopped:
            await asyncio.sleep(WATCH_S)
            for lane in self._lanes.values():
                lane.fail_if_silent()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)


def _identity(info: WorkerInfo) -> tuple[str, int]:
    return info.worker_id, info.epoch


def _paired(lane: LaneClient, partner: LaneClient | None) -> bool:
    if partner is None:
        return bool(lane.paired_with)
    return partner.info is not None and _identity(partner.info) in lane.paired_with
