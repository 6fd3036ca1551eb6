"""A rank's signs of life: lines that its guard passes on to its stdout, which mpiexec carries to the supervisor. So no
port is needed.

``advance`` is for the engine's loop and its collectives: a rank whose loop stands still hangs, however alive it is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Literal

import msgspec

from tandem.messages import Heartbeat

PREFIX = b"tandem-heartbeat "
LAST_WORDS = b"tandem-last-words"
"""A line on stderr: nothing comes after it. Words take another way than heartbeats, which may be a longer one."""
PERIOD_S = 0.5
MAX_MESSAGE = 500
"""Characters. A line goes out in one piece as long as it is shorter than PIPE_BUF."""


class _State:
    """What the next heartbeat says. One per process."""

    fd: int | None = None
    phase: Literal["loading", "running", "stopped", "failed"] = "loading"
    message = ""
    progress = 0
    sending = threading.Lock()
    """Held while one is made and sent: an older one never comes after a newer one."""


def start(fd: int) -> None:
    """Say at ``fd`` that this rank is alive from now on, at first that it is loading."""
    _State.fd = fd
    threading.Thread(target=_beat, name="heartbeat", daemon=True).start()


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
    if phase == "stopped" and _State.fd is not None:
        sys.stdout.flush()  # the same as stderr since the fork
        sys.stderr.flush()
        os.write(2, LAST_WORDS + b"\n")
    _send()


def _send() -> None:
    if _State.fd is None:
        return
    with _State.sending:
        beat = Heartbeat(pid=os.getpid(), phase=_State.phase, progress=_State.progress, message=_State.message)
        os.write(_State.fd, msgspec.json.encode(beat) + b"\n")


def _beat() -> None:
    while True:
        _send()
        time.sleep(PERIOD_S)
