"""The files under /dev/shm through which the ranks of one host talk: 3 MB of MPICH's, 16 MB a rank of Open MPI's.

MPI removes them when it ends in good order, which a group that is killed does not. So they lose their names as soon as
every rank has opened them; the memory lives on until the last rank is gone.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

_OURS = re.compile(r"/dev/shm/(?:mpich_shm|sm_segment|vader_segment)\S*$")


def forget_names(comm: MPI.Intracomm) -> None:
    """Take the names off MPI's shared memory; all ranks call it at the same time, before all else."""
    comm.alltoall([0] * comm.Get_size())  # opens what is opened at first use only
    comm.Barrier()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if found := _OURS.search(line):
            with contextlib.suppress(FileNotFoundError):  # another rank was quicker
                Path(found[0]).unlink()
