"""The warden of a rank that is not ours: a process beside it, which leaves nothing of the group on this host when the
rank, or what MPI has started it from, has ended. Our own ranks have a guard instead."""

from __future__ import annotations

import os
import select
from pathlib import Path

from tandem.parallel import processes, shared_memory

GRACE_S = 2.0
"""For MPI to say which rank has ended, and to end the others itself."""


def post(place: Path | None) -> None:
    """Fork one; ``place`` is where MPI has its shared memory here. It holds none of this process's files."""
    rank, launcher = os.getpid(), os.getppid()
    if os.fork():
        return
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        _wait(rank, launcher)
        shared_memory.remove_place(place)
        processes.end_group(os.environ[processes.TAG])
    finally:
        os._exit(0)


def _wait(rank: int, launcher: int) -> None:
    """Until the launcher has ended, or the rank has for a while."""
    try:
        launcher_end, rank_end = os.pidfd_open(launcher), os.pidfd_open(rank)
    except ProcessLookupError:
        return
    poll = select.poll()
    for fd in (launcher_end, rank_end):
        poll.register(fd, select.POLLIN)
    if launcher_end in (fd for fd, _ in poll.poll()):
        return
    poll.unregister(rank_end)
    poll.poll(GRACE_S * 1000)
