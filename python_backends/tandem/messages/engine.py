"""Stage ↔ engine process."""

from __future__ import annotations

from tandem.messages.base import Message
from tandem.messages.events import EngineEvent
from tandem.messages.lane import Cancel, Pair, Unpair
from tandem.messages.load import Load
from tandem.messages.prefix_cache import KvEvent
from tandem.messages.work import AnyWork
from tandem.messages.worker import WorkerInfo


class Stop(Message, tag="stop", frozen=True, kw_only=True):
    """End the engine process in good order."""


class Start(Message, tag="start", frozen=True, kw_only=True):
    """Take work (one message, many requests)."""

    work: list[AnyWork]


EngineCommand = Start | Cancel | Pair | Unpair | Stop


class Loading(Message, tag="loading", frozen=True, kw_only=True):
    """The engine process is alive and loading."""

    what: str
    fraction: float


class Ready(Message, tag="ready", frozen=True, kw_only=True):
    worker: WorkerInfo


class EngineError(Message, tag="engine_error", frozen=True, kw_only=True):
    """The engine cannot go on; the process ends after this message."""

    message: str


class Events(Message, tag="events", frozen=True, kw_only=True):
    """All that happened in one engine step. Sent at least every second, as a sign of life."""

    events: list[EngineEvent]
    load: Load
    kv: list[KvEvent] = []


EngineReport = Loading | Ready | EngineError | Events
