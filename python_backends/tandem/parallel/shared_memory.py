"""The files under /dev/shm through which the ranks of one host talk: 3 MB of MPICH's, 16 MB a rank of Open MPI's.

MPI removes them when it ends in good order, which a group that is killed does not. So they lose their names as soon as
every rank has opened them; the memory lives on until the last rank is gone. For a group that ends before, it has to be
known from the start where they are: Open MPI can be told, MPICH has to be asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

DIRECTORY = Path("/dev/shm")
SETTINGS = ("OMPI_MCA_btl_sm_backing_directory", "OMPI_MCA_btl_vader_backing_directory")
"""Environment variables by which Open MPI learns of its directory, from 5 on and before."""
ANSWER_TIMEOUT_S = 5.0
_OURS = re.compile(r"/dev/shm/(?:mpich_shm|sm_segment|vader_segment|tandem-[0-9a-f]+/)\S*$")


def choose_directory(tag: str) -> dict[str, str]:
    """Settings by which ranks of the group ``tag`` have their files in a directory of their own."""
    return dict.fromkeys(SETTINGS, str(DIRECTORY / f"tandem-{tag}"))


def find_place() -> Path | None:
    """Where the rank that starts here will have its files: a directory, which is made, or the beginning of their names.
    To be called before MPI starts, at most once. None: this implementation is not known to say."""
    if (directory := os.environ.get(SETTINGS[0])) is not None:
        Path(directory).mkdir(exist_ok=True)
        return Path(directory)
    job = _ask_for_job()
    return DIRECTORY / f"mpich_shm_{_hash(job):x}_" if job is not None else None


def remove_place(place: Path | None) -> None:
    """Remove the files there; ranks keep what they have opened."""
    if place is None:
        return
    shutil.rmtree(place, ignore_errors=True)
    for path in place.parent.glob(f"{place.name}*"):
        with contextlib.suppress(OSError):  # somebody was quicker
            path.unlink()


def remove_group(tag: str) -> None:
    """Remove the directory of ``choose_directory`` on this host, if it is still there."""
    shutil.rmtree(DIRECTORY / f"tandem-{tag}", ignore_errors=True)


def forget_names(comm: MPI.Intracomm) -> None:
    """Take the names off MPI's shared memory; all ranks call it at the same time, before all else."""
    comm.alltoall([0] * comm.Get_size())  # opens what is opened at first use only
    comm.Barrier()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if found := _OURS.search(line):
            with contextlib.suppress(FileNotFoundError):  # another rank was quicker
                Path(found[0]).unlink()
    if (directory := os.environ.get(SETTINGS[0])) is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _ask_for_job() -> bytes | None:
    """The job's name, from Hydra, over the connection that MPICH will use."""
    try:
        connection = int(os.environ["PMI_FD"])
        os.write(connection, b"cmd=get_my_kvsname\n")
        if not select.select([connection], [], [], ANSWER_TIMEOUT_S)[0]:
            return None
        found = re.search(rb"kvsname=(\S+)", os.read(connection, 4096))
    except (KeyError, ValueError, OSError):
        return None
    return found[1] if found else None


def _hash(text: bytes) -> int:
    """FNV-1a, by which MPICH 5 makes a name of the job's."""
    value = 0x811C9DC5
    for byte in text:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
