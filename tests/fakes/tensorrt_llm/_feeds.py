"""Statistics and KV events on their way to their one reader."""

from __future__ import annotations

import time
from collections import deque
from threading import Condition
from typing import Any

from tensorrt_llm._results import IterationResult

KEPT = 1000
"""Items that wait for a reader; older ones are lost, as in the real library's ring."""


class Feed:
    """Queued in an ``IterationResult`` once there is one, or fetched by call where the orchestrator is rpc."""

    def __init__(self, *, by_call: bool, kept: int = KEPT) -> None:
        self.result: IterationResult | None = None
        self._by_call = by_call
        self._items: deque[dict[str, Any]] = deque(maxlen=kept)
        self._told = Condition()

    def tell(self, item: dict[str, Any]) -> None:
        """From the engine's thread."""
        with self._told:
            if self.result is not None and not self._by_call:
                self.result.put(item)
                return
            self._items.append(item)
            self._told.notify()

    def expect_more(self) -> None:
        """A request is submitted: the first one makes the queue, under the event loop it is submitted from."""
        with self._told:
            if self.result is not None:
                self.result.mark_undone()
                return
            self.result = IterationResult()
            while self._items and not self._by_call:
                self.result.put(self._items.popleft())

    def fetch(self, timeout: float) -> list[dict[str, Any]]:
        """By call: all there is, waiting for the first of it."""
        deadline = time.monotonic() + timeout
        with self._told:
            while not self._items and (left := deadline - time.monotonic()) > 0:
                self._told.wait(left)
            found = list(self._items)
            self._items.clear()
        return found
