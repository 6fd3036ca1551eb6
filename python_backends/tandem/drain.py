"""How a run is told to come to an end before its server is: through two files in the run directory.

Triton gives a model no sign before it finalizes it, and crashes (2.51) if one then waits for an answer of another,
as an orchestrator's polls always do. So whoever stops the server asks here first, and waits.
"""

from __future__ import annotations

import time
from pathlib import Path

_POLL_S = 0.05


class DrainMark:
    """Both sides of the agreement: ``lanes-open`` stands while there are lanes, ``drain`` asks for the end."""

    def __init__(self, run_directory: Path) -> None:
        self._open = run_directory / "lanes-open"
        self._asked = run_directory / "drain"

    # the orchestrator's side

    def opened(self) -> None:
        """Lanes are open."""
        self._open.touch()

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._asked.exists()

    def closed(self) -> None:
        """No request is left, and no lane is open."""
        self._open.unlink(missing_ok=True)

    # the side of whoever stops the server

    def ask(self, timeout_s: float) -> bool:
        """Ask for the end and wait for it; False when it did not come in time. At once where no lane is open."""
        if not self._open.exists():
            return True
        self._asked.touch()
        deadline = time.monotonic() + timeout_s
        while self._open.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return not self._open.exists()
