"""How a run is told to come to an end before its server is: through files in the run directory.

Triton gives a model no sign before it finalizes it, and crashes (2.51) if one then waits for an answer of another,
as an orchestrator's polls always do. So whoever stops the server asks here first, and waits: for the orchestrator to
close its lanes, and for the workers to finish what orchestrators have them do.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

_POLL_S = 0.05
_ASKED = "drain"
_OPEN = "open-*"


class DrainMark:
    """One model's side: its mark stands while there is something to finish, and is looked after by this process."""

    def __init__(self, run_directory: Path, model: str) -> None:
        self._open = run_directory / _OPEN.replace("*", model)
        self._asked = run_directory / _ASKED

    def opened(self) -> None:
        """From now on there may be something to finish."""
        self._open.write_text(str(os.getpid()))

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._asked.exists()

    def closed(self) -> None:
        """Nothing is left to finish."""
        self._open.unlink(missing_ok=True)


def drain(run_directory: Path, timeout_s: float) -> bool:
    """Ask all models of a run to come to their ends, and wait; False when that did not come in time. At once where no
    model has anything to finish; one whose process is gone has not."""
    if not _unfinished(run_directory):
        return True
    (run_directory / _ASKED).touch()
    deadline = time.monotonic() + timeout_s
    while (unfinished := _unfinished(run_directory)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return not unfinished


def _unfinished(run_directory: Path) -> bool:
    return any(_is_running(mark) for mark in run_directory.glob(_OPEN))


def _is_running(mark: Path) -> bool:
    try:
        return bool(psutil.Process(int(mark.read_text())).status() != psutil.STATUS_ZOMBIE)
    except ValueError:
        return True  # it is just being written
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False
