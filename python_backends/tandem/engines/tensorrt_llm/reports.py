"""What an engine tells: all that happens in one turn of its event loop goes out together, with the load it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tandem.engines.base import EventSink
from tandem.messages import EngineEvent, KvEvent, Load


class Reports:
    """Used in the event loop alone."""

    def __init__(self, measure: Callable[[], Load]) -> None:
        """``measure`` gives the load."""
        self._measure = measure
        self._events: list[EngineEvent] = []
        self._changes: list[KvEvent] = []
        self._last_load: Load | None = None
        self._is_due = False

    def start(self, loop: asyncio.AbstractEventLoop, sink: EventSink) -> None:
        """Send to ``sink``, from ``loop``."""
        self._loop, self._sink = loop, sink

    def say(self, *events: EngineEvent, changes: Iterable[KvEvent] = ()) -> None:
        """Something has happened, if only to the load."""
        self._events += events
        self._changes += changes
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is, and the load wherever it changed."""
        self._is_due = False
        load = self._measure()
        if self._events or self._changes or load != self._last_load:
            events, self._events = self._events, []
            changes, self._changes = self._changes, []
            self._last_load = load
            self._sink(events, load, changes)
