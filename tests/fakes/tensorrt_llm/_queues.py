"""Queues between the engine's thread and who waits: bound to the event loop they were made in, as the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from typing import Any

NO_LOOP = (  # the real words
    "The asyncio event loop was not present during initialization, so async operations are not available."
)


class ResultQueue:
    """Made under a running event loop it serves ``async`` alone, without one only blocking calls."""

    def __init__(self) -> None:
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._items: deque[Any] = deque()
        self._event = asyncio.Event() if self._loop else None
        self._blocking: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: object) -> None:
        """From any thread. What comes after the loop's end is lost."""
        if self._loop is None or self._event is None:
            self._blocking.put(item)
            return
        self._items.append(item)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def aget(self, timeout: float | None = None) -> Any:
        """The next item.

        Raises:
            AssertionError: there was no event loop when this was made.
            TimeoutError: nothing came within ``timeout`` seconds.
        """
        assert self._event is not None, NO_LOOP
        while not self._items:
            self._event.clear()
            await asyncio.wait_for(self._event.wait(), timeout)
        return self._items.popleft()

    def get(self, timeout: float | None = None) -> Any:
        """The next item, from outside an event loop.

        Raises:
            queue.Empty: nothing came within ``timeout`` seconds.
        """
        assert self._loop is None, "made under an event loop, read without it: the real one warns and blocks the loop"
        return self._blocking.get(timeout=timeout)
