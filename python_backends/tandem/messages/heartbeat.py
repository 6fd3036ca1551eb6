"""Rank → supervisor, as lines of JSON."""

from __future__ import annotations

from typing import Literal

from tandem.messages.base import Message


class Heartbeat(Message, frozen=True, kw_only=True):
    """A rank is alive. Said twice a second, and at once when the phase changes."""

    pid: int
    """As the rank's own host counts."""
    phase: Literal["loading", "running", "stopped", "failed", "exited", "killed"]
    """stopped: ended in good order; failed: it cannot go on, ``message`` says why; exited, killed: the process has
    ended unasked, by itself or by a signal, says its guard, and ``message`` says how."""
    progress: int
    """Grows while the engine loop goes round; one that stands still while running hangs."""
    message: str = ""
