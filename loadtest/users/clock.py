"""The clock of a run's records: seconds since this process began, the same for all users."""

from __future__ import annotations

import time

_BEGAN = time.monotonic()


def now() -> float:
    """Seconds."""
    return time.monotonic() - _BEGAN
