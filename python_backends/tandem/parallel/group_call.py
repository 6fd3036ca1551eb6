"""How the ranks of a worker are started: one command, its environment, and what is heard of them. The supervisor runs
what this says; ``tandem serve --dry-run`` prints it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tandem.deployment import Deployment, Worker
from tandem.parallel import llmapi
from tandem.parallel.launch import Launcher, build_call, find_launcher
from tandem.parallel.rank import build_program


@dataclass(frozen=True)
class GroupCall:
    """One MPI job."""

    command: list[str]
    environment: dict[str, str]
    """All of it."""
    marker: re.Pattern[bytes]
    """What stands before a piece of a rank's output; group 1 is the rank."""
    watched: int
    """The first so many ranks tell by heartbeats how they are."""
    runs: list[str]
    """What each rank becomes on its host, where that is another program in the end."""
    files: dict[Path, str]
    """To be written before it is started."""


def plan_group(
    deployment: Deployment,
    worker: Worker,
    endpoint: str,
    engine: str | None,
    environment: dict[str, str],
    directory: Path,
    launcher: Launcher | None = None,
    python: str | None = None,
) -> GroupCall:
    """The job of ``worker``'s ranks. ``engine``, as ``module:function``, is run in place of the deployment's, but
    started as that would be; ``launcher`` and ``python`` replace those of this machine.

    Raises:
        TandemError: ``invalid_request``: it cannot be started from here like this.
    """
    if worker.engine == llmapi.ENGINE:
        return _plan_llmapi(deployment, worker, endpoint, engine, environment, directory, launcher, python)
    launcher = launcher or find_launcher(deployment.parallel)
    program, extra = build_program(deployment, worker, endpoint, engine, python)
    command, environment = build_call(
        launcher, deployment.parallel, worker, program, {**environment, **extra}, directory
    )
    return GroupCall(command, environment, launcher.marker, worker.group_size, [], {})


def _plan_llmapi(
    deployment: Deployment,
    worker: Worker,
    endpoint: str,
    engine: str | None,
    environment: dict[str, str],
    directory: Path,
    launcher: Launcher | None,
    python: str | None,
) -> GroupCall:
    program, extra = llmapi.build_program(deployment, worker, endpoint, engine, python)
    runs = llmapi.build_rank(worker, endpoint, engine, python)
    environment = {**environment, **extra}
    if deployment.parallel.launcher == "srun":
        command, environment, files = llmapi.build_srun(worker, program, environment, directory / "hosts")
        return GroupCall(command, environment, llmapi.SRUN_MARKER, 1, runs, files)
    launcher = launcher or llmapi.find_openmpi(deployment.parallel)
    command, environment = build_call(
        launcher,
        deployment.parallel,
        worker,
        program,
        llmapi.without_outer_job(environment),
        directory,
        llmapi.FORWARDED,
    )
    return GroupCall(command, environment, launcher.marker, 1, runs, {})
