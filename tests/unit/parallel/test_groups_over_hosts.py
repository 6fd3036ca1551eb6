"""Engine groups over two hosts, with both implementations of MPI: ranks reach each other over the links, and a host
that is lost, or the way to it, ends the group on all hosts with the cause."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Hosts
from tests.unit.parallel.groups import Group


@pytest.fixture
def group(mpi: str, hosts: Hosts, tmp_path: Path) -> Iterator[Group]:
    """Two ranks on each of two hosts."""
    with Group(tmp_path, mpi, hosts, indexes=(0, 1), size=4) as group:
        group.wait_ready()
        yield group
        assert group.leaves_nothing()
    hosts[1].mend()


def test_ranks_compute_together_over_the_links(group: Group, hosts: Hosts) -> None:
    size = 4_000_000
    before = [host.traffic() for host in hosts.hosts]
    assert group.ask(f"sum-{size // 4}") == [10] * 4
    moved = [sum(now) - sum(then) for now, then in zip([host.traffic() for host in hosts.hosts], before, strict=True)]
    assert min(moved) > size  # no host's ranks have it all without the others'
    assert group.ask("env-TANDEM_TEST_NUMBER") == [7] * 4
    assert group.ask("env-OMP_NUM_THREADS") == [1] * 4
    assert group.close_stage() == 0
    log = group.log()
    assert f"[rank 0 {hosts[0].address}] the leader stops in good order" in log
    assert f"[rank 3 {hosts[1].address}] a follower stops in good order" in log


@pytest.mark.parametrize("rank", [0, 3])
def test_the_rank_that_was_killed_is_named(group: Group, rank: int) -> None:
    process, name = group.find_rank(rank)
    process.kill()
    assert group.wait_exit() == f"exit status 1: {name} was killed by SIGKILL; the group is ended"


def test_a_stopped_rank_on_another_host_is_named(group: Group) -> None:
    process, name = group.find_rank(2)
    process.suspend()
    assert group.wait_exit().startswith(f"exit status 1: {name} has been silent for 2 s")


@pytest.mark.parametrize("what", ["sum-1", "hang-0"])
def test_a_cut_link_ends_the_group_on_both_sides(group: Group, hosts: Hosts, what: str) -> None:
    """While it is cut: nothing there depends on its being mended. Ranks over there may be waiting in a collective."""
    _, name = group.find_rank(2)
    group.wait_running()  # one that loads may be silent for longer
    group.tell(what)
    hosts[1].cut()
    reason = group.wait_exit()
    assert name in reason
    assert "have been silent for 2 s: they are stopped, or their host or link is down" in reason
    assert group.leaves_nothing()


def test_a_group_ends_on_all_hosts_with_its_killed_supervisor(group: Group) -> None:
    group.find_supervisor().kill()
    assert group.wait_exit().startswith("killed by SIGKILL")


def test_a_host_that_cannot_be_reached_is_named(mpi: str, hosts: Hosts, tmp_path: Path) -> None:
    hosts[1].cut()
    try:
        with Group(tmp_path, mpi, hosts, indexes=(0, 1)) as group:
            assert f"connect to host {hosts[1].address}" in group.wait_exit()
            assert group.leaves_nothing()
    finally:
        hosts[1].mend()


def test_the_first_host_has_to_be_this_one(hosts: Hosts, tmp_path: Path) -> None:
    with Group(tmp_path, "mpich", hosts, indexes=(0, 1), started_on=hosts[1]) as group:
        assert f"worker.hosts: '{hosts[0].address}', the first of prefill_0, is no address of this" in group.wait_exit()


def test_doctor_tries_to_reach_the_hosts(hosts: Hosts, tmp_path: Path) -> None:
    addresses = [*hosts.addresses(0, 1), "no-such-host"]
    file = tmp_path / "d.toml"
    file.write_text(
        f'name = "d"\n[model]\npath = "m"\n[parallel]\nlaunch_agent = "{hosts.agent}"\n'
        '[[worker]]\nname = "p"\nstage = "prefill"\n[[worker]]\nname = "q"\nstage = "decode"\n'
        f"tensor_parallel_size = 3\nhosts = {json.dumps(addresses)}\n"
    )
    command = [sys.executable, "-c", "from tandem.cli import app; app()", "doctor", str(file)]
    said = " ".join(hosts[0].run(command, check=False, timeout=120.0).stdout.split())
    assert "✗ hosts no-such-host cannot be reached: agent: no host no-such-host" in said
    assert hosts[1].address not in said.partition("✗ hosts")[2]
