"""Acts on what ``health`` finds: takes workers that hang out of use, probes them, and brings them back."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine

from tandem.deployment import Deployment
from tandem.errors import TandemError
from tandem.lanes.client import LaneClient, Mailbox
from tandem.lanes.replica import Replica
from tandem.messages import Failed, Generate, PollReply, Sampling, Stopping
from tandem.orchestrator.health import Breaker, Progress
from tandem.routing.router import Router

log = logging.getLogger(__name__)

_numbers = itertools.count()


class HealthWatch:
    """All workers of one orchestrator. Lives in its event loop; ``spawn`` runs a coroutine there."""

    def __init__(
        self, deployment: Deployment, router: Router, spawn: Callable[[Coroutine[None, None, None]], object]
    ) -> None:
        self._rules = deployment.health
        self._longest_wait_s = deployment.kv.lease_s + deployment.kv.transfer_timeout_s
        self._router = router
        self._spawn = spawn
        self._workers: dict[str, tuple[Progress, Breaker]] = {}

    def greeted(self, lane: LaneClient) -> None:
        """A worker has a new engine: it is trusted."""
        progress, breaker = self._of(lane.worker)
        progress.begin(lane.load, time.monotonic())
        breaker.renewed(time.monotonic())

    def polled(self, lane: LaneClient, reply: PollReply) -> None:
        """A worker has answered a poll."""
        progress, _ = self._of(lane.worker)
        progress.heard(reply.load, reply.events, lane.request_ids, time.monotonic())

    def check(self, lane: LaneClient) -> None:
        """Look whether a worker hangs, or may be probed. To be called often, for every worker."""
        if lane.info is None:
            return
        progress, breaker = self._of(lane.worker)
        now = time.monotonic()
        if breaker.state == "good" and (problem := progress.problem(now)) is not None:
            breaker.trip(now)
            self._router.drain(lane.worker.name)
            log.warning("worker %s hangs: %s; its requests go elsewhere", lane.worker.name, problem)
            lane.give_up(f"worker {lane.worker.name} hangs: {problem}")
        elif breaker.state == "out" and lane.outstanding:
            lane.give_up(f"worker {lane.worker.name} hangs")  # these were on their way
        elif breaker.may_probe(now):
            breaker.probing()
            self._spawn(self._probe(lane, progress, breaker))

    def is_out(self, name: str) -> bool:
        """Whether a worker is out of use, for it hung and has not answered a probe since."""
        return name in self._workers and self._workers[name][1].state != "good"

    def forget(self, name: str) -> None:
        """A worker is gone for good."""
        self._workers.pop(name, None)

    def _of(self, worker: Replica) -> tuple[Progress, Breaker]:
        if worker.name not in self._workers:
            progress = Progress(self._rules, worker.worker.max_batch_tokens, self._longest_wait_s)
            self._workers[worker.name] = progress, Breaker(self._rules)
        return self._workers[worker.name]

    async def _probe(self, lane: LaneClient, progress: Progress, breaker: Breaker) -> None:
        """A request of one token; whoever answers it works."""
        info = lane.info
        request_id = f"probe#{next(_numbers)}"
        work = Generate(request_id=request_id, token_ids=[0], sampling=Sampling(), stopping=Stopping(max_tokens=1))
        probe = asyncio.ensure_future(_answered(lane, work))
        await asyncio.wait({probe}, timeout=progress.allowed_s)
        answered = probe.done() and probe.result()
        probe.cancel()
        lane.close(request_id)
        if not answered:
            lane.cancel(request_id)
        if breaker.state != "probed" or lane.info is not info:
            return  # it has a new engine by now, or none
        now = time.monotonic()
        breaker.probed(answered, now)
        if answered:
            progress.begin(lane.load, now)
            if not lane.draining:
                self._router.resume(lane.worker.name)
            log.info("worker %s answers again", lane.worker.name)


async def _answered(lane: LaneClient, work: Generate) -> bool:
    """Whether anything good comes back."""
    mailbox = Mailbox()
    try:
        await lane.submit(work, mailbox)
        return not any(isinstance(event, Failed) for event in await mailbox.take())
    except TandemError:
        return False
