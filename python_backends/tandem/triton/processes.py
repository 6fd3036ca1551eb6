"""The processes and the shared memory of one run, found by their marks, so that nothing outlives it.

A server has children (stubs) and grandchildren (engines), and any of them may die before the others. All carry
``TANDEM_RUN`` in their environment, so they are found wherever they hang in the process tree.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil

RUN_VARIABLE = "TANDEM_RUN"

_SHARED_MEMORY = Path("/dev/shm")
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
    """End the run: ask its server to stop, wait for all its processes up to ``grace_s``, kill the rest, clean up."""
    if grace_s > 0:
        _signal([p for p in find_processes(run_id) if _is_server(p)], signal.SIGTERM)
        _await_end(run_id, grace_s)
    deadline = time.monotonic() + _KILL_WAIT_S
    while (left := find_processes(run_id)) and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        _await_end(run_id, 0.5)
    remove_shared_memory(run_id)


def _await_end(run_id: str, timeout_s: float) -> None:
    """Wait until no process of the run is left, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while find_processes(run_id) and time.monotonic() < deadline:
        time.sleep(0.05)


def remove_shared_memory(run_id: str) -> None:
    """Remove the regions that killed processes left."""
    for region in _SHARED_MEMORY.glob(f"{shared_memory_prefix(run_id)}*"):
        region.unlink(missing_ok=True)


def _is_server(process: psutil.Process) -> bool:
    """Stubs ignore SIGTERM and engines end with their stub: only the server is asked."""
    try:
        return str(process.name()).startswith("tritonserver")
    except psutil.Error:
        return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
