"""The orchestrator's end of one lane: work goes out in batches, events come back through one long poll.

Two threads serve a lane, because a call of the transport blocks: one polls, one sends. Everything else runs in the
orchestrator's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from tandem.errors import TandemError
from tandem.lanes.replica import Replica
from tandem.lanes.transport import Transport
from tandem.messages import (
    AnyWork,
    Cancel,
    EngineEvent,
    Failed,
    Hello,
    HelloReply,
    LaneReply,
    LaneRequest,
    Leave,
    Load,
    Poll,
    PollReply,
    Refused,
    Submit,
    SubmitReply,
    WorkerInfo,
)

log = logging.getLogger(__name__)

POLL_WAIT_S = 1.0
SILENCE_S = 5.0
"""A worker whose poll stays unanswered for this much longer than its wait is out."""
RETRY_S = 0.2
MAX_BATCH = 64
"""Most commands that are merged at a time."""

Events = list[EngineEvent]


class Mailbox:
    """The events of one request, in order. For one reader in the event loop."""

    def __init__(self) -> None:
        self._events: Events = []
        self._arrived = asyncio.Event()

    def put(self, event: EngineEvent) -> None:
        """Add an event; from the event loop only."""
        self._events.append(event)
        self._arrived.set()

    async def take(self) -> Events:
        """All events since the last call; waits for the first one."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class LaneObserver(Protocol):
    """Who wants to know what becomes of a worker. Called in the event loop."""

    def greeted(self, lane: LaneClient) -> None:
        """The worker is there, with a new epoch: ``lane.info`` and ``lane.load`` tell of it.

        Raises:
            TandemError: it is of no use; it is asked again, and may be another by then.
        """
        ...

    def polled(self, lane: LaneClient, reply: PollReply) -> None:
        """The worker has answered a poll; events go to their mailboxes by themselves."""
        ...

    def lost(self, lane: LaneClient) -> None:
        """The worker is gone; ``greeted`` follows once it is back."""
        ...


class _Command(msgspec.Struct):
    request: LaneRequest
    answered: asyncio.Future[LaneReply] | None


class LaneClient:
    """One worker as this orchestrator knows it."""

    def __init__(
        self,
        lane: str,
        worker: Replica,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        observer: LaneObserver,
    ) -> None:
        self.worker = worker
        self.info: WorkerInfo | None = None
        self.load = Load()
        self.draining = False
        """The worker is about to end: nothing new is to go there."""
        self.trouble = "has not answered yet"
        """Why there is no ``info``."""
        self.kv_from: int | None = None
        """What to ask for of the changes of the worker's prefix cache, see ``Poll``."""
        self._lane = lane
        self._transport = transport
        self._loop = loop
        self._observer = observer
        self._mailboxes: dict[str, Mailbox] = {}
        self._unanswered: set[asyncio.Future[LaneReply]] = set()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._last_reply = time.monotonic()
        self._stopped = threading.Event()
        self._lost = threading.Event()
        self._to_leave = False
        self._threads = [
            threading.Thread(target=target, name=f"lane-{name}-{worker.name}", daemon=True)
            for name, target in (("poll", self._poll_forever), ("send", self._send_forever))
        ]

    def start(self) -> None:
        """Begin to greet and poll the worker."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let both threads end, the polling one with the poll under way. What waits to be sent still leaves."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._commands.put(None)

    def stop(self) -> None:
        """End both threads, and wait for it."""
        self.end()
        for thread in self._threads:
            thread.join(POLL_WAIT_S + SILENCE_S)
        self._transport.close()

    @property
    def healthy(self) -> bool:
        """Greeted, and heard of lately."""
        return self.info is not None and time.monotonic() - self._last_reply < POLL_WAIT_S + SILENCE_S

    @property
    def outstanding(self) -> int:
        """Requests given to the worker and not ended."""
        return len(self._mailboxes)

    @property
    def request_ids(self) -> Collection[str]:
        """Of the requests that are outstanding."""
        return self._mailboxes.keys()

    # -------------------------------------------------------------- for the event loop

    async def submit(self, work: AnyWork, mailbox: Mailbox | None = None) -> Mailbox:
        """Hand over work; its events go to ``mailbox``, or a new one, until ``close``.

        Raises:
            TandemError: the worker refused, with its reason.
        """
        if self.info is None:
            raise TandemError("worker_lost", f"worker {self.worker.name} is not ready: {self.trouble}")
        mailbox = self._mailboxes[work.request_id] = mailbox or Mailbox()
        try:
            reply = await self.call(Submit(lane=self._lane, epoch=self.info.epoch, work=[work]))
        except BaseException:
            self.close(work.request_id)
            raise
        if isinstance(reply, SubmitReply):
            for failed in reply.refused:
                if failed.request_id == work.request_id:
                    self.close(work.request_id)
                    raise TandemError(failed.code, failed.message)
        return mailbox

    def close(self, request_id: str) -> None:
        """No more events of this request are wanted."""
        self._mailboxes.pop(request_id, None)

    def cancel(self, request_id: str) -> None:
        """Stop a request and give up what it holds, without waiting."""
        self.tell(Cancel(request_ids=[request_id]))

    def tell(self, request: LaneRequest) -> None:
        """Send one message in turn, without waiting for its reply."""
        self._commands.put(_Command(request, None))

    async def call(self, request: LaneRequest) -> LaneReply:
        """Send one message in turn and wait for its reply.

        Raises:
            TandemError: refused, or the worker does not answer.
        """
        if self._stopped.is_set():
            raise TandemError("worker_lost", f"worker {self.worker.name} is gone")
        answered: asyncio.Future[LaneReply] = self._loop.create_future()
        self._unanswered.add(answered)
        answered.add_done_callback(self._unanswered.discard)
        self._commands.put(_Command(request, answered))
        reply = await answered
        if isinstance(reply, Refused):
            raise TandemError(reply.code, reply.message)
        return reply

    def fail_if_silent(self) -> None:
        """Give up on a worker that has not answered for too long: its requests end, and it is greeted anew."""
        if self.info is not None and not self.healthy:
            self._lose(f"worker {self.worker.name} has not answered for {time.monotonic() - self._last_reply:.1f} s")

    def leave(self) -> None:
        """Part from a worker that drains, once nothing is on its way to it; it is greeted again when it is back."""
        self._lose(f"worker {self.worker.name} drains, and was left")

    def give_up(self, reason: str) -> None:
        """Tell all requests of this worker that it is lost to them."""
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(Failed(request_id=request_id, code="worker_lost", message=reason))

    def _lose(self, reason: str) -> None:
        log.warning("%s", reason)
        self.info, self.trouble, self.draining = None, reason, False
        self._lost.set()
        self._observer.lost(self)
        for answered in list(self._unanswered):  # whoever sends may be stuck for a while
            _resolve(answered, Refused(code="worker_lost", message=reason))
        self.give_up(reason)

    def _take_poll(self, reply: PollReply) -> None:
        if self.info is None:
            return  # lost meanwhile
        self.load = reply.load
        self._observer.polled(self, reply)
        for event in reply.events:
            if mailbox := self._mailboxes.get(event.request_id):
                mailbox.put(event)

    def _take_greeting(self, reply: HelloReply) -> None:
        self.info, self.load = reply.worker, reply.load
        try:
            self._observer.greeted(self)
        except TandemError as error:
            self._lost.set()
            self._set_trouble(f"worker {self.worker.name} is refused: {error.message}")

    def _set_trouble(self, reason: str) -> None:
        """The worker is not there; said once for each reason."""
        self.info = None
        if reason != self.trouble:
            log.warning("%s", reason)
            self.trouble = reason

    # -------------------------------------------------------------- the poll thread

    def _poll_forever(self) -> None:
        epoch: int | None = None
        while not self._stopped.is_set():
            try:
                epoch = self._poll_once(epoch)
                self._last_reply = time.monotonic()
            except TandemError as error:
                self._in_loop(self._lose_if_known, error.message)
                epoch = None
                self._stopped.wait(RETRY_S)
            except Exception:
                log.exception("the poll of worker %s failed", self.worker.name)
                self._stopped.wait(RETRY_S)
        if self._to_leave:
            self._leave_lane()

    def _poll_once(self, epoch: int | None) -> int | None:
        """Greet the worker if it is not known, else poll it; returns the epoch that holds now."""
        if epoch is None:
            greeting = self._greet()
            self._lost.clear()
            self._last_reply = time.monotonic()
            self._in_loop(self._take_greeting, greeting)
            return greeting.worker.epoch
        self._to_leave = True
        reply = self._transport.call(Poll(lane=self._lane, wait_s=POLL_WAIT_S, kv_from=self.kv_from))
        if not isinstance(reply, PollReply):
            raise TandemError("worker_lost", f"worker {self.worker.name} answered a poll with {type(reply).__name__}")
        self._in_loop(self._take_poll, reply)
        if reply.epoch != epoch:
            raise TandemError("worker_lost", f"worker {self.worker.name} has lost its engine or restarted")
        return None if self._lost.is_set() else epoch

    def _greet(self) -> HelloReply:
        if self._to_leave:
            self._leave_lane()
        greeting = self._transport.call(Hello())
        if isinstance(greeting, Refused):
            raise TandemError(greeting.code, f"worker {self.worker.name} is not ready: {greeting.message}")
        if not isinstance(greeting, HelloReply):
            raise TandemError("worker_lost", f"worker {self.worker.name} answered a hello with {greeting}")
        if greeting.draining:
            raise TandemError("worker_lost", f"worker {self.worker.name} is not ready: it drains")
        return greeting

    def _leave_lane(self) -> None:
        """What the worker still has of this lane is of no use any more."""
        try:
            self._transport.call(Leave(lane=self._lane))
            self._to_leave = False
        except TandemError as error:  # it cannot be told now, or is no more
            log.debug("%s", error.message)

    def _lose_if_known(self, reason: str) -> None:
        if self.info is not None:
            self._lose(reason)
        else:
            self._set_trouble(reason)

    # -------------------------------------------------------------- the send thread

    def _send_forever(self) -> None:
        while batch := self._next_batch():
            for group in _merge(batch):
                self._send(group)

    def _next_batch(self) -> list[_Command]:
        """Waits for a command, and takes those that follow it; nothing at the end."""
        batch: list[_Command] = []
        while len(batch) < MAX_BATCH and not (batch and self._commands.empty()):
            command = self._commands.get()
            if command is None:
                self._commands.put(None)  # found again once this batch is sent
                break
            batch.append(command)
        return batch

    def _send(self, group: list[_Command]) -> None:
        """One call for a group of commands that were merged; all get the same reply."""
        try:
            reply = self._transport.call(_merged_request(group))
        except TandemError as error:
            reply = Refused(code=error.code, message=error.message)
        except Exception as error:
            log.exception("a call of worker %s failed", self.worker.name)
            reply = Refused(code="worker_lost", message=f"worker {self.worker.name}: {error}")
        for command in group:
            if command.answered is not None:
                self._in_loop(_resolve, command.answered, reply)

    def _in_loop(self, function: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def _merge(batch: list[_Command]) -> list[list[_Command]]:
    """Neighbouring submits, and neighbouring cancels, become one call."""
    groups: list[list[_Command]] = []
    for command in batch:
        last = groups[-1][0].request if groups else None
        request = command.request
        same_submit = isinstance(last, Submit) and isinstance(request, Submit) and last.epoch == request.epoch
        if same_submit or (isinstance(last, Cancel) and isinstance(request, Cancel)):
            groups[-1].append(command)
        else:
            groups.append([command])
    return groups


def _merged_request(group: list[_Command]) -> LaneRequest:
    first = group[0].request
    match first:
        case Submit():
            work = [item for c in group if isinstance(c.request, Submit) for item in c.request.work]
            return msgspec.structs.replace(first, work=work)
        case Cancel():
            return Cancel(
                request_ids=[r for c in group if isinstance(c.request, Cancel) for r in c.request.request_ids]
            )
        case _:
            return first


def _resolve(answered: asyncio.Future[LaneReply], reply: LaneReply) -> None:
    if not answered.done():
        answered.set_result(reply)
