"""Engine groups on one host, with real ranks of both implementations of MPI: they work, and whatever befalls a rank
ends the whole group with the cause, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Hosts
from tests.unit.engines.test_client import sockets_of
from tests.unit.parallel.groups import Group, wait_until

MADE_BY_MPI = ("mpich_shm", "sm_segment")


@pytest.fixture
def group(mpi: str, hosts: Hosts, tmp_path: Path) -> Iterator[Group]:
    with Group(tmp_path, mpi, hosts) as group:
        group.wait_ready()
        yield group
        assert group.leaves_nothing()


def test_ranks_compute_together_and_stop_in_good_order(group: Group) -> None:
    assert group.ask("sum-1000") == [3, 3]
    supervisor = group.find_supervisor()
    assert os.getpgid(supervisor.pid) == supervisor.pid
    assert group.close_stage() == 0
    assert group.wait_exit().startswith("exit status 0; its last words:")
    log = group.log()
    assert "[rank 0] the leader stops in good order" in log
    assert "[rank 1] a follower stops in good order" in log


@pytest.mark.parametrize("rank", [0, 2])
def test_the_rank_that_was_killed_is_named(mpi: str, hosts: Hosts, tmp_path: Path, rank: int) -> None:
    """And none of those that are ended for it, or at the same time."""
    with Group(tmp_path, mpi, hosts, size=3) as group:
        group.wait_ready()
        process, name = group.find_rank(rank)
        process.kill()
        assert group.wait_exit() == f"exit status 1: {name} was killed by SIGKILL; the group is ended"
        assert group.leaves_nothing()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named(group: Group, rank: int) -> None:
    process, name = group.find_rank(rank)
    process.suspend()
    fate = "has been silent for 2 s: it is stopped, or its host or link is down"
    assert group.wait_exit() == f"exit status 1: {name} {fate}; the group is ended"


def test_a_rank_that_never_lets_go_of_the_interpreter_is_silent(group: Group) -> None:
    _, name = group.find_rank(1)
    group.tell("freeze-1")
    assert group.wait_exit().startswith(f"exit status 1: {name} has been silent for 2 s")


def test_a_rank_that_never_joins_a_collective_is_noticed(group: Group) -> None:
    group.tell("hang-1")
    assert "no rank has made progress for 2 s, though alive: the engine's step hangs" in group.wait_exit()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise-0", "failed: thread step died: RuntimeError: a defect"),
        ("raise-1", "failed: RuntimeError: a defect"),
        ("exit-1", "has ended with exit status 3"),
    ],
)
def test_a_rank_that_fails_at_work_says_why(group: Group, what: str, said: str) -> None:
    way, rank = what.split("-")
    _, name = group.find_rank(int(rank))
    group.tell(what)
    assert group.wait_exit() == f"exit status 1: {name} {said}; the group is ended"
    assert f"[rank {rank}] about to {way}" in group.log()


@pytest.mark.parametrize(
    ("loading", "said"),
    [("raise-1", ") failed: RuntimeError: a defect"), ("abort-0", ") was killed by SIGABRT")],
)
def test_a_crash_while_loading_ends_the_group(mpi: str, hosts: Hosts, tmp_path: Path, loading: str, said: str) -> None:
    with Group(tmp_path, mpi, hosts, loading=loading) as group:
        reason = group.wait_exit()
        assert reason.startswith(f"exit status 1: rank {loading[-1]} (pid ")
        assert reason.endswith(f"{said}; the group is ended")
        assert group.leaves_nothing()


@pytest.mark.parametrize("victim", ["rank", "supervisor"])
def test_shared_memory_goes_with_a_group_that_was_starting(mpi: str, hosts: Hosts, tmp_path: Path, victim: str) -> None:
    """Rank 0 has made it, and waits for rank 1 in MPI's own start."""
    with Group(tmp_path, mpi, hosts, late=True) as group:
        wait_until(lambda: any(name.startswith(MADE_BY_MPI) for name in hosts[0].shared_memory()))
        if victim == "rank":
            group.find_processes("tandem.parallel.rank")[-1].kill()  # rank 1 has not come so far
            assert "rank 0 (pid " in group.wait_exit()
        else:
            group.find_supervisor().kill()
        assert group.leaves_nothing()


def test_a_group_with_a_stopped_rank_ends_with_its_killed_supervisor(group: Group) -> None:
    group.find_rank(1)[0].suspend()
    group.find_supervisor().kill()
    assert group.wait_exit().startswith("killed by SIGKILL")


def test_a_group_ends_with_its_stage(group: Group) -> None:
    group.wait_running()
    directory = sockets_of(group.find_supervisor())
    assert directory.exists()
    group.kill_stage()
    assert group.leaves_nothing()
    assert not directory.exists()
    assert "[rank 0] the leader stops in good order" in group.log()


def test_a_stage_that_is_gone_does_not_wait_for_a_hung_leader(group: Group) -> None:
    group.wait_running()
    group.find_rank(0)[0].suspend()
    group.kill_stage()


def test_a_group_ends_with_its_mpiexec(group: Group) -> None:
    (mpiexec,) = group.find_supervisor().children()
    mpiexec.kill()
    assert group.wait_exit() == "exit status 1: mpiexec was killed by SIGKILL; the group is ended"
