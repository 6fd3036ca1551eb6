"""Orchestrator ↔ stage: requests and replies of a lane."""

from __future__ import annotations

from tandem.errors import ErrorCode
from tandem.messages.base import PROTOCOL_VERSION, Message
from tandem.messages.events import EngineEvent, Failed
from tandem.messages.load import Load
from tandem.messages.prefix_cache import KvReport
from tandem.messages.work import AnyWork
from tandem.messages.worker import WorkerInfo


class Hello(Message, tag="hello", frozen=True, kw_only=True):
    """Ask a worker who it is. One that speaks another version refuses."""

    protocol_version: int = PROTOCOL_VERSION


class Pair(Message, tag="pair", frozen=True, kw_only=True):
    """Introduce a worker, so that KV may move between the two, as long as any lane wants it."""

    lane: str = ""
    peer: WorkerInfo


class Unpair(Message, tag="unpair", frozen=True, kw_only=True):
    """A worker that was introduced by this lane is gone for good; unknown ones are no error."""

    lane: str = ""
    worker_id: str


class Submit(Message, tag="submit", frozen=True, kw_only=True):
    """Hand over work; every refusal comes back at once, everything else through polls of ``lane``."""

    lane: str
    epoch: int
    work: list[AnyWork]


class Poll(Message, tag="poll", frozen=True, kw_only=True):
    """Ask for all events of ``lane`` since its last poll; answered when there are some, or after ``wait_s``.

    A poll that finds another one of the same lane outstanding takes its place.
    """

    lane: str
    wait_s: float
    kv_from: int | None = None
    """Number of the next change of the prefix cache that the caller has not heard of; None: it does not want to."""


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """Stop these requests wherever they are; unknown ids are no error. Handles they hold are released."""

    request_ids: list[str]


class Leave(Message, tag="leave", frozen=True, kw_only=True):
    """The caller has no request left and will not poll ``lane`` again: the worker may forget it."""

    lane: str


LaneRequest = Hello | Pair | Unpair | Submit | Poll | Cancel | Leave


class HelloReply(Message, tag="hello_reply", frozen=True, kw_only=True):
    worker: WorkerInfo
    load: Load
    draining: bool = False
    """It takes in only what was on its way to it; see ``PollReply``."""


class Done(Message, tag="done", frozen=True, kw_only=True):
    """Understood and done."""


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    code: ErrorCode
    message: str


class SubmitReply(Message, tag="submit_reply", frozen=True, kw_only=True):
    refused: list[Failed]


class PollReply(Message, tag="poll_reply", frozen=True, kw_only=True):
    epoch: int
    events: list[EngineEvent]
    load: Load
    kv: KvReport | None = None
    """Comes along where there is something new; it does not make a poll be answered earlier."""
    draining: bool = False
    """The worker is about to end: choose it for nothing new, and leave once nothing is on its way to it. What was
    chosen before is still taken."""


LaneReply = HelloReply | Done | Refused | SubmitReply | PollReply
