"""The processes of an engine group on this host: found by a tag in their environment, and ended together.

mpiexec, its proxies and the ranks are in sessions and process groups of their own choice, and a process whose parent
died has another one. The environment it was started with stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import psutil

TAG = "TANDEM_GROUP"
"""Environment variable of every process of a group; its value names the group."""
END_TIMEOUT_S = 5.0
NAP_S = 0.02
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def find_group(tag: str) -> list[psutil.Process]:
    """All processes of the group ``tag`` on this host, this one left out, and what they have started."""
    entry = f"{TAG}={tag}".encode()
    found: dict[int, psutil.Process] = {}
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                process = psutil.Process(pid)
                found.update({p.pid: p for p in [process, *process.children(recursive=True)]})
    found.pop(os.getpid(), None)
    return list(found.values())


def wait_group(tag: str, timeout_s: float) -> bool:
    """Whether all processes of the group ``tag`` on this host end by themselves within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while find_group(tag):
        if time.monotonic() > deadline:
            return False
        time.sleep(NAP_S)
    return True


def end_group(tag: str, timeout_s: float = END_TIMEOUT_S) -> bool:
    """Kill all processes of the group ``tag`` on this host but this one; False if some are left after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while processes := find_group(tag):
        if time.monotonic() > deadline:
            return False
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=0.1)
    return True


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, the process that started it, ends, however that is."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)
