"""What mpiexec and the ranks say when a job ends by itself, read for the rank that ended first."""

from __future__ import annotations

import re
from collections.abc import Sequence

Word = tuple[int | None, str]
"""A line on stderr, and the rank that said it; None: mpiexec."""

SHOWN_LINES = 3
_MPICH = re.compile(r"PID (\d+) RUNNING AT (\S+)")
_OPENMPI = re.compile(r"process rank (\d+) with PID \d+ on node \S+ exit|Process name: \[[^]]*,(\d+)\]")
_OPENMPI_ABORT = re.compile(r"process rank (\d+) with PID \d+ on node \S+ calling \"abort\"")
_LOST = "Socket closed"
_NOISE = re.compile(r"\[(mpiexec|proxy)[^]]*\] \w+ \(|[-=\s]*$")
"""Where in its own code Hydra was; rules and empty lines."""


def find_culprit(words: Sequence[Word], pids: Sequence[int | None], hosts: Sequence[str | None]) -> int | None:
    """The rank that mpiexec names; ``pids`` and ``hosts`` are the ranks' as far as they are known."""
    said = _words_of_mpiexec(words)
    if found := _OPENMPI.search(said):
        return int(found[1] or found[2])
    if found := _MPICH.search(said):
        for rank, (pid, host) in enumerate(zip(pids, hosts, strict=True)):
            if pid == int(found[1]) and host in (None, found[2]):
                return rank
    return None


def find_bereaved(words: Sequence[Word]) -> int | None:
    """A rank whose connection to another one broke: Open MPI ends that rank, too, and may tell of this end only."""
    lost = next((rank for rank, text in words if rank is not None and _LOST in text), None)
    aborted = _OPENMPI_ABORT.search(_words_of_mpiexec(words))
    return int(aborted[1]) if lost is None and aborted else lost


def summarize(words: Sequence[Word]) -> str:
    """The first lines of substance that mpiexec said."""
    lines = [text.strip() for rank, text in words if rank is None and not _NOISE.match(text)]
    return " / ".join(lines[:SHOWN_LINES])


def _words_of_mpiexec(words: Sequence[Word]) -> str:
    """As one line: sentences are broken anywhere."""
    return " ".join(text.strip() for rank, text in words if rank is None)
