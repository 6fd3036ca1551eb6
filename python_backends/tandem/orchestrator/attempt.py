"""One try at a request, on one worker or two: work goes out, events come back, in the end nobody holds any of it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, TypedDict

from tandem.deployment import Deployment
from tandem.errors import TandemError
from tandem.lanes.client import LaneClient, Mailbox
from tandem.messages import (
    DEFAULT_PRIORITY,
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Prefill,
    Prefilled,
    Pulled,
    Sampling,
    StageName,
    Stopping,
    Tokens,
)
from tandem.orchestrator.fleet import Assignment
from tandem.orchestrator.recovery import WorkerFailed, judge


class Wanted(NamedTuple):
    """What a request asks of every worker alike."""

    prompt: list[int]
    sampling: Sampling
    stopping: Stopping
    salt: str = ""
    """Its tenant: requests share cached blocks only within one."""
    traceparent: str = ""
    priority: int = DEFAULT_PRIORITY


class Deadlines(NamedTuple):
    """How long each part may take, in seconds."""

    prefill_s: float
    """To the first token."""
    handover_s: float
    """Until decode has the KV. By then the lease has run out, and decode would have said so."""
    decode_s: float
    """From token to token."""

    @classmethod
    def of(cls, deployment: Deployment) -> Deadlines:
        """Those of a deployment."""
        limits, kv = deployment.limits, deployment.kv
        return cls(limits.prefill_timeout_s, kv.lease_s + kv.transfer_timeout_s, limits.decode_timeout_s)


class _Common(TypedDict):
    """The fields of every ``Work`` but its id."""

    token_ids: list[int]
    output_ids: list[int]
    salt: str
    sampling: Sampling
    stopping: Stopping
    traceparent: str
    priority: int


class Attempt:
    """Made, used and ended in the event loop, by one reader."""

    def __init__(self, name: str, wanted: Wanted, replay: list[int], assignment: Assignment, deadlines: Deadlines):
        """``name`` is that of no other attempt; ``replay`` is the answer so far."""
        plan = assignment.plan  # which is not kept: it has the costs on all workers
        self.route = assignment.route
        self.is_whole = assignment.prefill is None
        """One worker does both stages."""
        self.first_token_s = plan.first_token_s
        """Expected until the first token is there."""
        self._keeps: dict[StageName, bool] = {"prefill": plan.keeps("prefill"), "decode": plan.keeps("decode")}
        self._replay = replay
        self.step = "waiting for workers"
        """Where it is, for messages."""
        self._name, self._wanted, self._deadlines = name, wanted, deadlines
        self._first, self._decode = assignment.prefill or assignment.decode, assignment.decode
        self._lender = assignment.lender
        self._mailbox = Mailbox()
        self._held: dict[str, LaneClient] = {}
        """By the work's id: the workers that may have something of the request."""
        self._failure: TandemError | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def first_worker(self) -> str:
        """The name of the worker that reads the prompt."""
        return self._first.worker.name

    @property
    def decode_worker(self) -> str:
        """The name of the worker that makes all tokens but, maybe, the first."""
        return self._decode.worker.name

    def holder(self, event: EngineEvent) -> str:
        """The name of the worker that an event is of."""
        lane = self._held.get(event.request_id)
        return lane.worker.name if lane is not None else ""

    # -------------------------------------------------------------- in the order of events

    async def begin(self) -> list[EngineEvent]:
        """Have the prompt read. Returns what happened up to ``Prefilled``, or to the first token where one worker does
        both stages.

        Raises:
            TandemError: a ``WorkerFailed``, or one that is the same everywhere; as all that waits here.
        """
        if self.is_whole:
            self.step = f"in both stages on {self.first_worker}"
            await self._submit("decode", self._first, Generate(request_id=self._work_id("generate"), **self._work()))
            self._limit(self._deadlines.prefill_s, "limits.prefill_timeout_s: no first token")
            return await self.more()
        self.step = f"in prefill on {self.first_worker}"
        work = Prefill(
            request_id=self._work_id("prefill"),
            **self._work(),
            lender=self._lender,
            keeps=self._keeps["prefill"],
        )
        await self._submit("prefill", self._first, work)
        self._limit(self._deadlines.prefill_s, "limits.prefill_timeout_s: no first token")
        events: list[EngineEvent] = []
        while not any(isinstance(event, Prefilled) for event in events):
            events += await self.more()
        return events

    async def hand_over(self, handle: bytes, output_ids: list[int]) -> None:
        """Have decode redeem the handle and go on after these tokens of the answer. Until it has the KV, the loss of
        the prefill worker is the attempt's end too."""
        self.step = f"in decode on {self.decode_worker}"
        self._replay = output_ids
        keeps = self._keeps["decode"]
        work = Decode(request_id=self._work_id("decode"), handle=handle, **self._work(), keeps=keeps)
        await self._submit("decode", self._decode, work)
        self._limit(self._deadlines.handover_s, "kv.lease_s + kv.transfer_timeout_s: decode has not got the KV")

    async def more(self) -> list[EngineEvent]:
        """What happens next; ``Failed`` is never among it."""
        while True:
            if self._failure is not None:
                raise self._failure
            if kept := self._sort(await self._mailbox.take()):
                return kept

    def end(self) -> None:
        """Whoever holds something of the request gives it up; may be called again."""
        if self._timer is not None:
            self._timer.cancel()
        self.route.end()
        for work_id, lane in self._held.items():
            lane.cancel(work_id)
            lane.close(work_id)
        self._held.clear()

    # -------------------------------------------------------------- its parts

    def _work_id(self, stage: str) -> str:
        return f"{self._name}/{stage}"

    def _work(self) -> _Common:
        prompt, sampling, stopping, salt, traceparent, priority = self._wanted
        return _Common(
            token_ids=prompt,
            output_ids=self._replay,
            salt=salt,
            sampling=sampling,
            stopping=stopping,
            traceparent=traceparent,
            priority=priority,
        )

    async def _submit(self, stage: StageName, lane: LaneClient, work: AnyWork) -> None:
        self._held[work.request_id] = lane
        try:
            await lane.submit(work, self._mailbox)
        except TandemError as error:
            raise judge(error.code, error.message, lane.worker.name, self.first_worker) from error
        self.route.sent(stage)

    def _sort(self, events: list[EngineEvent]) -> list[EngineEvent]:
        """The events that tell of progress; what ends the attempt is kept until they have been seen."""
        kept: list[EngineEvent] = []
        for event in events:
            lane = self._held.get(event.request_id)
            if lane is None or self._failure is not None:
                continue
            match event:
                case Failed():
                    message = f"{event.message} ({self.step})"
                    self._failure = judge(event.code, message, lane.worker.name, self.first_worker)
                    continue
                case Tokens():
                    self.route.first_token()
                    self._limit(self._deadlines.decode_s, "limits.decode_timeout_s: no further token")
                case Pulled():
                    self._let_go(self._work_id("prefill"))
                    self.route.released()
                    self._limit(self._deadlines.decode_s, "limits.decode_timeout_s: no further token")
                case Finished(reason="cancelled"):
                    what = f"worker {lane.worker.name} stopped the request by itself ({self.step})"
                    self._failure = WorkerFailed("worker_lost", what, lane.worker.name)
                    continue
                case Finished() | Prefilled(handle=None):
                    self._let_go(event.request_id)
            kept.append(event)
        return kept

    def _let_go(self, work_id: str) -> None:
        """The worker holds nothing of this work any more."""
        if (lane := self._held.pop(work_id, None)) is not None:
            lane.close(work_id)

    # -------------------------------------------------------------- its deadlines

    def _limit(self, seconds: float, what: str) -> None:
        """From now on this long until the next call of ``_limit``. A timer that fires too early finds out by itself."""
        loop = asyncio.get_running_loop()
        self._due, self._what, self._allowed_s = loop.time() + seconds, what, seconds
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._check_deadline)

    def _check_deadline(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._check_deadline)
        elif self._failure is None:
            message = f"{self._what} after {self._allowed_s:g} s ({self.step})"
            if self._what.startswith("kv."):
                self._failure = WorkerFailed("transfer_failed", message, self.decode_worker)
            else:
                self._failure = TandemError("deadline_exceeded", message)
            self._mailbox.put(Failed(request_id="", code="deadline_exceeded", message=message))
