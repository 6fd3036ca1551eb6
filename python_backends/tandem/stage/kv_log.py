"""What happened to an engine's prefix cache, numbered, for whoever wants to keep a copy.

A reader asks for the changes from a number on, at first 1, and goes on after the last one it was told. As long as the
log reaches back so far it gets just these; otherwise all that is there, and goes on after that. So replies may get
lost, come late or come twice: a reader skips what it has, and asks again from where it stands. Numbers belong to an
epoch: a report that comes with another epoch than the reader's is not for it, and it begins again at 1.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from tandem.messages import BlocksStored, KvEvent, KvReport

KEPT_BLOCKS = 16384
"""Stored or removed blocks that the log reaches back."""


class KvLog:
    """The changes of one epoch, and what they led to. Thread-safe."""

    def __init__(self, kept_blocks: int = KEPT_BLOCKS) -> None:
        self._lock = threading.Lock()
        self._kept_blocks = kept_blocks
        self.clear()

    def clear(self) -> None:
        """A new epoch begins, with nothing in the cache."""
        with self._lock:
            self._events: deque[KvEvent] = deque()
            self._num_blocks = 0
            """In ``_events``."""
            self._next = 1
            """Number of the change that comes next."""
            self._there: dict[int, None] = {}
            """Names in the cache, in the order in which they came."""

    def add(self, events: Sequence[KvEvent]) -> None:
        """Take what the engine reports."""
        with self._lock:
            for event in events:
                if isinstance(event, BlocksStored):
                    self._there.update(dict.fromkeys(event.hashes))
                else:
                    for name in event.hashes:
                        self._there.pop(name, None)
                self._events.append(event)
                self._num_blocks += len(event.hashes)
                self._next += 1
            while self._num_blocks > self._kept_blocks:
                self._num_blocks -= len(self._events.popleft().hashes)

    def report(self, kv_from: int | None) -> KvReport | None:
        """The changes from number ``kv_from`` on; None if there are none, or nobody wants to know."""
        with self._lock:
            if kv_from is None or kv_from == self._next:
                return None
            first = self._next - len(self._events)
            if first <= kv_from < self._next:
                return KvReport(first=kv_from, events=list(self._events)[kv_from - first :])
            events: list[KvEvent] = [BlocksStored(hashes=list(self._there))] if self._there else []
            return KvReport(first=self._next - 1, events=events, is_snapshot=True)
