"""The processes and the shared memory of one run, found by their marks, so that nothing outlives it.

A server has children (stubs) and grandchildren (engines), and any of them may die before the others. All carry
``TANDEM_RUN`` in their environment, so they are found wherever they hang in the process tree.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

RUN_VARIABLE = "TANDEM_RUN"

_SHARED_MEMORY = Path("/dev/shm")
_ORPHAN_WAIT_S = 2.0
_KILL_WAIT_S = 5.0


def shared_memory_prefix(run_id: str) -> str:
    """How the names of the run's shared memory regions begin."""
    return f"tandem_{run_id}_"


def find_processes(run_id: str) -> list[psutil.Process]:
    """All living processes of the run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == run_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end_run(run_id: str, grace_s: float) -> None:
    """End the run: its server has ``grace_s`` to stop, the others a moment more; then all are killed.

    The calling process still has to reap children of its own among them.
    """
    if grace_s > 0:
        _signal(_servers(run_id), signal.SIGTERM)
        _await(lambda: not _servers(run_id), grace_s)
        _await(lambda: not find_processes(run_id), min(grace_s, _ORPHAN_WAIT_S))
    deadline = time.monotonic() + _KILL_WAIT_S
    while (left := find_processes(run_id)) and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        _await(lambda: not find_processes(run_id), timeout_s=0.5)
    remove_shared_memory(run_id)


def remove_shared_memory(run_id: str) -> None:
    """Remove the regions that killed processes left."""
    for region in _SHARED_MEMORY.glob(f"{shared_memory_prefix(run_id)}*"):
        region.unlink(missing_ok=True)


def _servers(run_id: str) -> list[psutil.Process]:
    """The run's server: only it is asked to stop, for stubs ignore SIGTERM and engines end with their stub."""
    return [process for process in find_processes(run_id) if _name(process).startswith("tritonserver")]


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _await(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until ``condition`` holds, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
