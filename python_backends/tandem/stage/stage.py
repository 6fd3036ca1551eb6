"""One worker as orchestrators and plain clients see it: takes work, keeps lanes, watches over its engine."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tandem.deployment import Deployment, Worker
from tandem.drain import DrainMark
from tandem.errors import ErrorCode, TandemError
from tandem.messages import (
    PROTOCOL_VERSION,
    AnyWork,
    Cancel,
    Done,
    EngineEvent,
    Events,
    Failed,
    Hello,
    HelloReply,
    LaneReply,
    LaneRequest,
    Leave,
    Load,
    Pair,
    Poll,
    Refused,
    Start,
    Submit,
    SubmitReply,
    Unpair,
    WorkerInfo,
)
from tandem.stage.keeper import EngineKeeper
from tandem.stage.kv_log import KvLog
from tandem.stage.lane_table import LaneTable, is_last
from tandem.stage.metrics import StageMetrics
from tandem.stage.pairings import Pairings
from tandem.stage.record import WorkRecords

log = logging.getLogger(__name__)

TICK_S = 0.1
MAX_POLL_S = 3600.0
"""A poll that asks for more would as well be answered never."""
LANE_SILENCE_S = 15.0
"""A lane that nobody polls for this long belongs to an orchestrator that is gone."""

EventSink = Callable[[list[EngineEvent]], None]


class Stage:
    """Everything behind one stage model. Every method returns at once; answers leave through callbacks."""

    def __init__(
        self,
        deployment: Deployment,
        deployment_file: Path,
        worker: Worker,
        metrics: StageMetrics,
        records: WorkRecords | None = None,
    ) -> None:
        self.worker = worker
        self._metrics = metrics
        self._records = records or WorkRecords(worker.name, None, False)
        self._kv = KvLog()
        self._lanes = LaneTable(LANE_SILENCE_S, self._epoch, self._kv)
        self._pairings = Pairings()
        self._direct: dict[str, EventSink] = {}
        self._direct_ids = (f"{worker.name}/direct/{n}" for n in itertools.count())
        self._lock = threading.Lock()
        self._last_load = Load()
        self._heard: float | None = None
        """When the running engine spoke last (monotonic clock)."""
        self._capacity = worker.max_queue + worker.max_batch_size
        self._retry_after_s = deployment.limits.retry_after_s
        log_file = deployment_file.parent / "logs" / f"{worker.name}.log"
        self._keeper = EngineKeeper(deployment_file, worker.name, log_file, self._on_events, self._on_lost)
        self._drain_mark = DrainMark(deployment_file.parent, worker.name)
        self._drain_s = deployment.limits.drain_s
        self._drained_by: float | None = None
        """Once the server is to stop: when at the latest there is nothing left to finish."""
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name=f"ticker-{worker.name}", daemon=True)

    def start(self) -> WorkerInfo:
        """Start the engine; returns when it is ready.

        Raises:
            TandemError: ``engine_failed``.
        """
        info = self._keeper.start()
        self._metrics.engine_ready()
        self._drain_mark.opened()
        self._ticker.start()
        return info

    def stop(self) -> None:
        """End the engine and every wait."""
        self._fail_all("worker_lost", f"worker {self.worker.name} is shutting down")
        self._stopped.set()  # from here on polls are answered at once
        self._lanes.answer_overdue(self._load, float("inf"))
        self._keeper.stop()

    # -------------------------------------------------------------- lanes

    def handle(self, request: LaneRequest, reply: Callable[[LaneReply], None]) -> None:
        """Answer one lane message; all but ``Poll`` at once."""
        match request:
            case Poll() if not 0 <= request.wait_s <= MAX_POLL_S:  # nor if it is no number
                what = f"wait_s: {request.wait_s}; expected 0 to {MAX_POLL_S:g} (seconds)"
                reply(Refused(code="invalid_request", message=what))
            case Poll():
                now = float("inf") if self._stopped.is_set() else time.monotonic()
                self._lanes.poll(request, reply, self._load, now)
            case Submit():
                reply(SubmitReply(refused=self._submit(request)))
            case Cancel():
                self.cancel(request.request_ids)
                reply(Done())
            case Hello():
                reply(self._hello(request))
            case Pair():
                self._pairings.add(request.lane, request.peer.worker_id)
                reply(Done() if self._keeper.send(request) else self._not_ready())
            case Unpair():
                if self._pairings.remove(request.lane, request.worker_id):
                    self._keeper.send(request)
                reply(Done())
            case Leave():
                self._end_lane(request.lane)
                reply(Done())

    def _hello(self, hello: Hello) -> HelloReply | Refused:
        if hello.protocol_version != PROTOCOL_VERSION:
            return Refused(
                code="worker_incompatible",
                message=f"worker {self.worker.name} speaks protocol version {PROTOCOL_VERSION}, and was greeted in "
                f"version {hello.protocol_version}: run the same Tandem everywhere",
            )
        info = self._keeper.info
        return HelloReply(worker=info, load=self._load, draining=self._lanes.draining) if info else self._not_ready()

    def _end_lane(self, lane: str) -> int:
        """Forget a lane and all that was for it alone; returns how many requests it had."""
        orphans = self._lanes.drop(lane, self._load)
        if orphans:
            self.cancel(orphans)
        for worker_id in self._pairings.remove_lane(lane):
            self._keeper.send(Unpair(worker_id=worker_id))
        return len(orphans)

    def _not_ready(self) -> Refused:
        return Refused(
            code="worker_lost",
            message=f"the engine of worker {self.worker.name} is starting; try again in {self._retry_after_s:g} s",
        )

    def _submit(self, submit: Submit) -> list[Failed]:
        with self._lock:
            accepted, refused = self._admit(submit.work, submit.epoch)
            self._lanes.claim(submit.lane, [work.request_id for work in accepted], time.monotonic())
        self._records.took(accepted)
        if accepted and not self._keeper.send(Start(work=accepted)):
            self._fail_all("worker_lost", f"the engine of worker {self.worker.name} ended")
        return refused

    def _admit(self, work: list[AnyWork], epoch: int | None) -> tuple[list[AnyWork], list[Failed]]:
        """Split work into what fits and what is refused, with the reason."""
        info = self._keeper.info
        if info is None:
            lost = self._not_ready()
            return [], self._refuse(work, lost.code, lost.message)
        if epoch is not None and epoch != info.epoch:
            return [], self._refuse(work, "worker_lost", f"worker {self.worker.name} has restarted; greet it again")
        work, refused = self._without_known(work)
        free = max(0, self._capacity - len(self._lanes) - len(self._direct))
        overload = (
            f"worker {self.worker.name} has {self._capacity} requests in hand, its limit (max_queue + max_batch_size); "
            f"try again in {self._retry_after_s:g} s"
        )
        return work[:free], refused + self._refuse(work[free:], "overloaded", overload)

    def _without_known(self, work: list[AnyWork]) -> tuple[list[AnyWork], list[Failed]]:
        """Refuse what has the id of a request in hand: the events of the one would end the other."""
        new: dict[str, AnyWork] = {}
        refused: list[Failed] = []
        for item in work:
            if item.request_id in new or item.request_id in self._lanes or item.request_id in self._direct:
                why = f"request_id: {item.request_id!r} is in hand already; choose another"
                refused += self._refuse([item], "invalid_request", why)
            else:
                new[item.request_id] = item
        return list(new.values()), refused

    def _refuse(self, work: list[AnyWork], code: ErrorCode, message: str) -> list[Failed]:
        for _ in work:
            self._metrics.refused(code)
        return [Failed(request_id=item.request_id, code=code, message=message) for item in work]

    # -------------------------------------------------------------- plain clients

    def submit_direct(self, work: AnyWork, sink: EventSink) -> str:
        """Take work from a client that names no lane; its events go to ``sink``. Returns the request's id here.

        Raises:
            TandemError: the work is refused.
        """
        if self._lanes.draining:
            raise TandemError(
                "overloaded", f"worker {self.worker.name} is about to end; send the request to another one"
            )
        request_id = next(self._direct_ids)
        work = msgspec.structs.replace(work, request_id=request_id)
        with self._lock:
            accepted, refused = self._admit([work], epoch=None)
            if refused:
                raise TandemError(refused[0].code, refused[0].message)
            self._direct[request_id] = sink
        self._records.took(accepted)
        if not self._keeper.send(Start(work=accepted)):
            self._fail_all("worker_lost", f"the engine of worker {self.worker.name} ended")
        return request_id

    def cancel(self, request_ids: list[str]) -> None:
        """Stop requests wherever they are and give up the leases granted for them."""
        self._keeper.send(Cancel(request_ids=request_ids))

    @property
    def info(self) -> WorkerInfo | None:
        """Who the running engine is; None while there is none."""
        return self._keeper.info

    def _epoch(self) -> int:
        info = self._keeper.info
        return info.epoch if info else 0

    # -------------------------------------------------------------- the engine speaks

    @property
    def _load(self) -> Load:
        heard = self._heard
        return msgspec.structs.replace(self._last_load, silent_s=time.monotonic() - heard if heard else 0.0)

    def _on_events(self, report: Events) -> None:
        self._last_load, self._heard = report.load, time.monotonic()
        self._metrics.record(report)
        self._kv.add(report.kv)
        if report.events:
            self._deliver(report.events)

    def _deliver(self, events: list[EngineEvent]) -> None:
        self._records.happened(events)
        if self._direct:
            self._deliver_direct(events)
        self._lanes.deliver(events, self._load, time.monotonic())

    def _deliver_direct(self, events: list[EngineEvent]) -> None:
        """Hand the events of plain clients' requests to their sinks, one call per request."""
        by_request: dict[str, list[EngineEvent]] = {}
        for event in events:
            if event.request_id in self._direct:
                by_request.setdefault(event.request_id, []).append(event)
        for request_id, own in by_request.items():
            sink = self._direct.pop(request_id, None) if is_last(own[-1]) else self._direct.get(request_id)
            if sink is not None:  # two threads may report one loss
                sink(own)

    def _on_lost(self, reason: str) -> None:
        self._last_load, self._heard = Load(), None
        self._kv.clear()
        self._pairings.clear()
        self._metrics.engine_lost()
        self._fail_all("worker_lost", f"the engine of worker {self.worker.name} ended: {reason}")
        self._records.clear()
        self._lanes.answer_overdue(self._load, float("inf"))  # idle lanes hear of it too

    def _fail_all(self, code: ErrorCode, message: str) -> None:
        request_ids = [*self._lanes.request_ids(), *self._direct]
        self._deliver([Failed(request_id=r, code=code, message=message) for r in request_ids])

    def _tick(self) -> None:
        """Answer polls whose time is over; cancel what silent lanes left behind."""
        while not self._stopped.wait(TICK_S):
            now = time.monotonic()
            self._lanes.answer_overdue(self._load, now)
            for lane in self._lanes.silent(now):
                if orphans := self._end_lane(lane):
                    log.warning("worker %s: a lane went silent; cancelled its %d requests", self.worker.name, orphans)
            self._drain(now)

    def _drain(self, now: float) -> None:
        """Once the server is to stop: have orchestrators send nothing new, and wait for what they have here to end."""
        if self._drained_by is None:
            if not self._drain_mark.asked:
                return
            log.info("worker %s drains", self.worker.name)
            self._drained_by = now + self._drain_s
            self._lanes.draining = True
            self._lanes.answer_overdue(self._load, float("inf"))  # they hear of it at once
        if now >= self._drained_by:
            why = f"worker {self.worker.name} is shutting down; limits.drain_s, {self._drain_s:g} s, are over"
            self._fail_all("worker_lost", why)
            self._drain_mark.closed()
        elif self._lanes.is_empty and not self._direct:
            self._drain_mark.closed()
