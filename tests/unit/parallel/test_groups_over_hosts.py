"""Engine groups over three hosts, with both implementations of MPI: ranks reach each other over the links, and a host
that is lost, or the way to it, ends the group on all hosts with the cause."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.hosts import Host, Hosts, find_obstacle, make_hosts
from tests.unit.parallel.groups import Group, is_stage, wait_until

pytestmark = pytest.mark.skipif(find_obstacle() is not None and not os.environ.get("CI"), reason=str(find_obstacle()))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with make_hosts(3) as hosts:
        yield hosts


@pytest.fixture(params=["mpich", "openmpi"])
def group(request: pytest.FixtureRequest, hosts: Hosts, tmp_path: Path) -> Iterator[Group]:
    """Two ranks on each of three hosts."""
    with Group(tmp_path, request.param, size=6, hosts=hosts, indexes=(0, 1, 2), subnet=hosts.subnet) as group:
        group.wait_ready()
        yield group
    for host in hosts.hosts:
        host.mend()


def are_empty(hosts: Hosts) -> bool:
    """Whether nothing of a group runs on any host; waits for that."""
    return wait_until(lambda: all(is_stage(process) for host in hosts.hosts for process in host.processes()))


def rank_of(group: Group, host: Host) -> tuple[int, psutil.Process]:
    """One rank that runs on a host: its number, and the process as seen from outside."""
    process = group.ranks(host)[0]
    for rank, (where, pid) in enumerate(zip([0, 0, 1, 1, 2, 2], group.ask("pids"), strict=True)):
        inside = int(Path(f"/proc/{process.pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1])
        if f"host{where + 1}" == host.name and pid == inside:
            return rank, process
    raise AssertionError("no such rank")


def test_ranks_compute_together_over_the_links(group: Group, hosts: Hosts) -> None:
    assert [len(group.ranks(host)) for host in hosts.hosts] == [2, 2, 2]
    before = [host.traffic() for host in hosts.hosts]
    size = 4_000_000
    assert group.ask(f"sum-{size // 4}") == [21] * 6
    moved = [sum(now) - sum(then) for now, then in zip([host.traffic() for host in hosts.hosts], before, strict=True)]
    assert min(moved) > size  # no host's ranks have it all without the others'
    assert group.close_stage() == 0
    log = group.log()
    assert f"[rank 0 {hosts[0].address}] the leader stops in good order" in log
    assert f"[rank 5 {hosts[2].address}] a follower stops in good order" in log
    assert are_empty(hosts)


def test_the_environment_reaches_all_hosts(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TANDEM_HANDLE_KEY", "UCX_TEST", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    for mpi in ("mpich", "openmpi"):
        with Group(tmp_path, mpi, size=3, hosts=hosts, indexes=(0, 1, 2)) as group:
            group.wait_ready()
            for name in ("TANDEM_HANDLE_KEY", "UCX_TEST", "OMP_NUM_THREADS"):
                assert group.ask(f"env-{name}") == [7, 7, 7]


def test_a_killed_rank_on_another_host_is_named(group: Group, hosts: Hosts) -> None:
    rank, process = rank_of(group, hosts[1])
    process.kill()
    reason = group.wait_exit()
    named = f"rank {rank} on {hosts[1].address} (pid " in reason and "has ended" in reason
    assert named or "lost its connection to another rank: that one has ended" in reason  # Open MPI may not say more
    assert are_empty(hosts)


def test_a_stopped_rank_on_another_host_is_named(group: Group, hosts: Hosts) -> None:
    rank, process = rank_of(group, hosts[2])
    process.send_signal(signal.SIGSTOP)
    reason = group.wait_exit()
    assert f"rank {rank} on {hosts[2].address} (pid " in reason
    assert "has been silent for 2 s" in reason
    assert are_empty(hosts)


@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_link_ends_the_group_on_both_sides(group: Group, hosts: Hosts, index: int) -> None:
    """While it is cut: nothing there depends on its being mended."""
    group.ask("sum-1")
    time.sleep(1.0)  # for the last of them to be heard to run: one that loads is given more time
    hosts[index].cut()
    reason = group.wait_exit()
    lost = hosts[1] if index == 1 else hosts[2]
    assert f"on {lost.address} (pid " in reason
    assert "have been silent for 2 s: they are stopped, or their host or link is down" in reason
    assert are_empty(hosts)


def test_a_group_ends_on_all_hosts_with_its_killed_supervisor(group: Group, hosts: Hosts) -> None:
    (supervisor,) = [p for p in group.processes() if "tandem.parallel.supervisor" in p.cmdline()]
    supervisor.kill()
    assert group.wait_exit().startswith("killed by SIGKILL")
    assert are_empty(hosts)


def test_a_group_ends_on_all_hosts_with_its_stage(group: Group, hosts: Hosts) -> None:
    group.kill_stage()
    assert are_empty(hosts)


def test_a_host_that_cannot_be_reached_is_named(hosts: Hosts, tmp_path: Path) -> None:
    hosts[1].cut()
    try:
        for mpi in ("mpich", "openmpi"):
            with Group(tmp_path, mpi, size=2, hosts=hosts, indexes=(0, 1)) as group:
                assert f"connect to host {hosts[1].address}" in group.wait_exit()
                assert are_empty(hosts)
    finally:
        hosts[1].mend()


def test_the_first_host_has_to_be_this_one(hosts: Hosts, tmp_path: Path) -> None:
    with Group(tmp_path, "mpich", size=2, hosts=hosts, indexes=(0, 1), started_on=hosts[1]) as group:
        assert f"worker.hosts: '{hosts[0].address}', the first of prefill_0, is no address of this" in group.wait_exit()


def test_doctor_tries_to_reach_the_hosts(hosts: Hosts, tmp_path: Path) -> None:
    worker = f'tensor_parallel_size = 2\nhosts = ["{hosts[0].address}", "{hosts[1].address}"]\n'
    file = tmp_path / "d.toml"
    file.write_text(
        f'name = "d"\n[model]\npath = "m"\n[parallel]\nlaunch_agent = "{hosts.agent}"\n'
        f'[[worker]]\nname = "p"\nstage = "prefill"\n{worker}[[worker]]\nname = "q"\nstage = "decode"\n'
    )

    def ask() -> str:
        command = [sys.executable, "-c", "from tandem.cli import app; app()", "doctor", str(file)]
        said = hosts[0].run(command, check=False, timeout=120.0).stdout
        return " ".join(said.split())

    assert f"✓ hosts {hosts[1].address} can be reached with" in ask()
    hosts[1].cut()
    try:
        assert f"✗ hosts {hosts[1].address} cannot be reached: agent: connect to host" in ask()
    finally:
        hosts[1].mend()
