"""A rank's signs of life: lines on its stdout, which mpiexec carries to the supervisor. So no port is needed.

``advance`` is for the engine's loop and its collectives: a rank whose loop stands still hangs, however alive it is.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from tandem.messages import Heartbeat

PREFIX = b"tandem-heartbeat "
PERIOD_S = 0.5
MAX_MESSAGE = 500
"""Characters. A line goes out in one piece as long as it is shorter than PIPE_BUF."""


class _State:
    """What the next heartbeat says. One per process, like the process's stdout."""

    fd: int | None = None
    phase: Literal["loading", "running", "stopped", "failed"] = "loading"
    message = ""
    progress = 0


def start(on_deaf: Callable[[], None]) -> None:
    """Say that this rank is alive from now on, at first that it is loading. Whatever else is written to stdout goes to
    stderr. ``on_deaf`` is called, in a thread of its own, when nobody hears it any more: the launcher is gone.
    """
    _State.fd = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_beat, args=(on_deaf,), name="heartbeat", daemon=True).start()


def advance() -> None:
    """The engine's loop went round, or did a part of its round; costs next to nothing."""
    _State.progress += 1


def loaded() -> None:
    """Loading is over: from now on, standing still is hanging."""
    _say("running")


def stopped() -> None:
    """This rank has ended in good order."""
    _say("stopped")


def failed(message: str) -> None:
    """This rank cannot go on."""
    _say("failed", message)


def _say(phase: Literal["running", "stopped", "failed"], message: str = "") -> None:
    _State.phase, _State.message = phase, message[:MAX_MESSAGE]
    with contextlib.suppress(OSError):  # the thread notices it as well
        _send()


def _send() -> None:
    if _State.fd is None:
        return
    beat = Heartbeat(pid=os.getpid(), phase=_State.phase, progress=_State.progress, message=_State.message)
    os.write(_State.fd, PREFIX + msgspec.json.encode(beat) + b"\n")


def _beat(on_deaf: Callable[[], None]) -> None:
    while True:
        try:
            _send()
        except OSError:
            on_deaf()
            return
        time.sleep(PERIOD_S)
