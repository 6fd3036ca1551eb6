"""TensorRT-LLM's MPI world: how it is started, in what environment, and that nothing of it is left. Over two hosts made
of namespaces, with the real Open MPI, and a stand-in for ``trtllm-llmapi-launch``."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tandem.deployment import Deployment, Model, Parallel, Worker
from tandem.errors import TandemError
from tandem.parallel import llmapi
from tandem.parallel.group_call import GroupCall, plan_group
from tandem.parallel.launch import Launcher
from tandem.parallel.llmapi_rank import find_problems, host_environment
from tandem.parallel.output import Demultiplexer
from tests.hosts import Hosts
from tests.unit.parallel.groups import Group, wait_until

HERE = Path(__file__).parent
HOSTS = ["10.0.0.1", "10.0.0.2"]
DEVICES = ["cuda:4", "cuda:5", "cuda:0", "cuda:1"]
ELSEWHERE = Launcher("openmpi", Path("mpirun"), Path("libmpi.so.40"), elsewhere=True)


def deployment(hosts: list[str] | None = None, **parallel: Any) -> Deployment:
    worker = Worker(
        name="decode_0",
        stage="decode",
        engine="tensorrt_llm",
        tensor_parallel_size=4,
        hosts=HOSTS if hosts is None else hosts,
        devices=DEVICES,
    )
    return Deployment(name="d", model=Model(path="/m"), worker=[worker], parallel=Parallel(**parallel))


def plan(found: Deployment, environment: dict[str, str], endpoint: str = "ipc:///e") -> GroupCall:
    return plan_group(found, found.worker[0], endpoint, None, environment, Path("/t"), ELSEWHERE, "/python")


def taken(command: list[str]) -> set[str]:
    """Variables that mpirun is told to take to other hosts."""
    return {command[index + 1] for index, word in enumerate(command) if word == "-x"}


def test_mpirun_takes_along_what_the_nodes_need() -> None:
    call = plan(deployment(), {"UCX_TLS": "rc", "NCCL_DEBUG": "INFO", "TRTLLM_X": "1", "TLLM_Y": "2", "HOME": "/root"})
    names = {"UCX_TLS", "NCCL_DEBUG", "TRTLLM_X", "TLLM_Y", "TANDEM_DEPLOYMENT"}
    assert names <= taken(call.command)
    assert "HOME" not in taken(call.command)
    assert call.command[:1] == ["mpirun"]
    assert "10.0.0.1:2,10.0.0.2:2" in call.command
    assert call.command[call.command.index("-n") :][:5] == ["-n", "4", "/python", "-m", "tandem.parallel.llmapi_rank"]
    assert call.runs[:4] == ["trtllm-llmapi-launch", "/python", "-m", "tandem.parallel.llmapi_leader"]
    assert call.watched == 1


def test_no_rank_takes_itself_for_one_of_an_outer_job() -> None:
    """In a batch script of Slurm's SLURM_PROCID is 0, which trtllm-llmapi-launch would believe on every rank."""
    outer = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "PMI_RANK": "0", "PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "3"}
    call = plan(deployment(), {**outer, "OMPI_MCA_pml": "ucx"})
    assert not set(outer) & set(call.environment)
    assert call.environment["OMPI_MCA_pml"] == "ucx"


def test_srun_starts_a_step_with_pmix() -> None:
    call = plan(deployment(launcher="srun"), {"SLURM_JOB_ID": "7", "UCX_TLS": "rc"})
    assert call.command[:2] == ["srun", "--mpi=pmix"]
    assert {"--ntasks=4", "--distribution=arbitrary", "--kill-on-bad-exit=1"} <= set(call.command)
    (path, text), *_ = call.files.items()
    assert text.split() == ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]  # in our order: rank 0 has to be here
    assert call.environment["SLURM_HOSTFILE"] == str(path)
    assert call.environment["SLURM_JOB_ID"] == "7"
    assert Demultiplexer(call.marker).feed(b" 0: one: 2: three\n11: four\nsrun: error: x\n") == [
        (0, b"one: 2: three"),
        (11, b"four"),
        (None, b"srun: error: x"),
    ]


def test_a_path_with_a_space_is_refused() -> None:
    with pytest.raises(TandemError, match=r"'ipc:///a b': trtllm-llmapi-launch splits its command at white space"):
        plan(deployment(), {}, "ipc:///a b")


def test_mpich_is_refused() -> None:
    with pytest.raises(TandemError, match=r"parallel\.mpi: 'mpich': TensorRT-LLM needs Open MPI"):
        llmapi.find_openmpi(Parallel(mpi="mpich"))
    assert llmapi.find_openmpi(Parallel()).implementation == "openmpi"


@pytest.mark.parametrize(("rank", "devices"), [(0, "4,5"), (1, "4,5"), (2, "0,1"), (3, "0,1")])
def test_each_host_shows_its_own_devices(rank: int, devices: str) -> None:
    assert llmapi.visible_devices(deployment().worker[0], rank) == devices


def test_devices_without_numbers_are_left_as_they_are() -> None:
    worker = Worker(name="a", stage="decode", tensor_parallel_size=2, devices=["cuda"])
    assert llmapi.visible_devices(worker, 0) is None


def test_infiniband_is_not_given_up_for_the_interface_of_mpi(tmp_path: Path) -> None:
    found = deployment(subnet="127.0.0.0/8")
    slow = host_environment(found, found.worker[0], 0, tmp_path)
    assert slow == {
        "CUDA_VISIBLE_DEVICES": "4,5",
        **dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "UCX_NET_DEVICES"), "lo"),
    }
    (tmp_path / "mlx5_0").mkdir()
    assert "UCX_NET_DEVICES" not in host_environment(found, found.worker[0], 0, tmp_path)


def test_a_container_without_its_devices_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "mlx5_0").mkdir()
    said = find_problems(deployment().worker[0], tmp_path, tmp_path / "nowhere")
    assert any("KV goes over TCP; --device=" in problem for problem in said)


# ---------------------------------------------------------------- for real


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the stand-in on the PATH, and a batch script's variables of Slurm's."""
    program = tmp_path / "bin" / llmapi.PROGRAM
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{(HERE / 'trtllm_llmapi_launch.py').read_text()}")
    program.chmod(0o755)
    (tmp_path / "nodes").mkdir()
    settings = {"UCX_TLS": "tcp", "NCCL_DEBUG": "WARN", "TRTLLM_SETTING": "1", "SLURM_PROCID": "0"}
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**settings, "PATH": path, "TANDEM_TEST_NODES": str(tmp_path / "nodes")}


@pytest.fixture
def group(hosts: Hosts, environment: dict[str, str], tmp_path: Path) -> Iterator[Group]:
    with Group(
        tmp_path,
        "openmpi",
        hosts,
        indexes=(0, 1),
        size=4,
        engine="tests.unit.parallel.llmapi_engine:create",
        environment=environment,
        devices=DEVICES,
        kind="tensorrt_llm",
    ) as group:
        group.wait_ready()
        yield group
        assert group.leaves_nothing()


def nodes(directory: Path) -> list[dict[str, Any]]:
    """What each node has noted, by rank."""
    return [json.loads((directory / "nodes" / str(rank)).read_text()) for rank in range(4)]


def test_a_world_over_two_hosts_works_and_stops_in_good_order(group: Group, tmp_path: Path) -> None:
    assert group.ask("what is there") == [4, 0, 1]  # nodes, nothing of MPI to be seen, a proxy to be found
    found = nodes(tmp_path)
    assert [node["size"] for node in found] == [4] * 4
    assert [node["CUDA_VISIBLE_DEVICES"] for node in found] == ["4,5", "4,5", "0,1", "0,1"]
    for node in found:
        assert (node["UCX_TLS"], node["NCCL_DEBUG"], node["TRTLLM_SETTING"]) == ("tcp", "WARN", "1")
        assert node["SLURM_PROCID"] is None
        assert node["NCCL_SOCKET_IFNAME"] not in (None, "lo")
    assert len({node["host"] for node in found}) == 2
    assert group.close_stage() == 0
    assert group.wait_exit().startswith("exit status 0")
    assert re.search(r"\[rank 0 \S+\] .*the leader stops in good order", group.log())


@pytest.mark.parametrize("whose", ["leader", "node"])
def test_a_death_ends_the_whole_world_and_is_told_of(group: Group, whose: str) -> None:
    if whose == "leader":
        group.tell("die")
        assert "rank 0 on 10." in group.wait_exit()
        assert "has ended with exit status 3; the group is ended" in group.wait_exit()
        return
    name = llmapi.PROGRAM
    found = wait_until(lambda: [p for p in group.processes() if any(name in word for word in words(p))])
    found[-1].kill()
    assert "mpiexec has ended" in group.wait_exit()


def words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline()[:2])
    except psutil.Error:
        return []
