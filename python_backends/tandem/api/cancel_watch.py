"""Notices clients that have left. Triton tells a Python model nothing by itself: somebody has to ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tandem.api.responder import Responder

log = logging.getLogger(__name__)

SWEEP_S = 0.02
BUSY_SHARE = 0.1
"""Asking costs a round trip to the server per request, so the watch rests in proportion to what it spent."""


class CancelWatch:
    """Asks for each watched request, again and again, whether its client has left."""

    def __init__(self) -> None:
        self._watched: dict[Responder, Callable[[], None]] = {}
        self._stopped, self._added = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancel-watch", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking. Does not wait: Triton may never answer a question that is under way while it finalizes."""
        self._stopped.set()
        self._added.set()

    def add(self, responder: Responder, on_cancel: Callable[[], None]) -> None:
        """Call ``on_cancel`` once, from the watch's thread, should this client leave before its response ends."""
        self._watched[responder] = on_cancel
        self._added.set()

    def _run(self) -> None:
        rest_s = SWEEP_S
        while not self._stopped.wait(rest_s):
            self._added.clear()
            if not self._watched:
                self._added.wait()
            started = time.monotonic()
            for responder in list(self._watched):
                try:
                    self._look_at(responder)
                except Exception:
                    log.exception("cannot tell whether a client has left, or nobody takes it")
            rest_s = max(SWEEP_S, (time.monotonic() - started) / BUSY_SHARE)

    def _look_at(self, responder: Responder) -> None:
        left = not responder.closed and responder.is_cancelled()
        if responder.closed:
            self._watched.pop(responder, None)
        elif left and (on_cancel := self._watched.pop(responder, None)):
            on_cancel()
