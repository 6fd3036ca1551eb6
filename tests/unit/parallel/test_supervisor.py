"""Engine groups on this machine, with real ranks of both implementations of MPI: they work, and whatever befalls a rank
ends the whole group with the cause, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.parallel.groups import Group

IMPLEMENTATIONS = ["mpich", "openmpi"]


@pytest.fixture(params=IMPLEMENTATIONS)
def mpi(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _no_shared_memory_is_left() -> Iterator[None]:
    before = set(Path("/dev/shm").glob("*"))
    yield
    left = [path.name for path in set(Path("/dev/shm").glob("*")) - before]
    assert [name for name in left if name.startswith(("mpich_shm", "sm_segment"))] == []


@pytest.fixture
def group(mpi: str, tmp_path: Path) -> Iterator[Group]:
    with Group(tmp_path, mpi) as group:
        group.wait_ready()
        yield group


def test_ranks_compute_together_and_stop_in_good_order(group: Group) -> None:
    assert group.ask("sum-1000") == [6, 6, 6]
    pids = group.ask("pids")
    assert sorted(pids) == sorted(rank.pid for rank in group.ranks())
    assert os.getpgid(group.supervisor.pid) == group.supervisor.pid
    assert group.close_stage() == 0
    assert group.exit_reason is not None
    assert group.exit_reason.startswith("exit status 0; its last words:")
    assert group.is_gone()
    log = group.log()
    assert "[rank 0] the leader stops in good order" in log
    for rank in (1, 2):
        assert f"[rank {rank}] a follower stops in good order" in log


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_is_named(group: Group, rank: int) -> None:
    pid = group.ask("pids")[rank]
    os.kill(pid, signal.SIGKILL)
    reason = group.wait_exit()
    assert reason.startswith(f"exit status 1: rank {rank} (pid {pid}) ")
    assert reason.endswith("; the group is ended")
    assert group.is_gone()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named(group: Group, rank: int) -> None:
    pid = group.ask("pids")[rank]
    os.kill(pid, signal.SIGSTOP)
    reason = group.wait_exit()
    assert reason == (
        f"exit status 1: rank {rank} (pid {pid}) has been silent for 2 s: it is stopped, or its host or link is down; "
        "the group is ended"
    )
    assert group.is_gone()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_joins_a_collective_is_noticed(group: Group, rank: int) -> None:
    group.tell(f"hang-{rank}")
    assert "no rank has made progress for 2 s, though alive: the engine's step hangs" in group.wait_exit()
    assert group.is_gone()


def test_a_rank_that_never_lets_go_of_the_interpreter_is_silent(group: Group) -> None:
    group.tell("freeze-1")
    assert "rank 1 (pid " in group.wait_exit()
    assert "has been silent for 2 s" in group.wait_exit()
    assert group.is_gone()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise-1", "failed: RuntimeError: a defect"),
        ("thread-1", "failed: thread side died: ZeroDivisionError"),
        ("raise-0", "failed: thread step died: RuntimeError: a defect"),
        ("abort-1", "rank 1 (pid "),
        ("exit-1", "rank 1 (pid "),
    ],
)
def test_a_rank_that_fails_at_work_says_why(group: Group, what: str, said: str) -> None:
    group.tell(what)
    reason = group.wait_exit()
    assert f"rank {what[-1]} (pid " in reason
    assert said in reason
    assert f"[rank {what[-1]}] about to {what[:-2]}" in group.log()
    assert group.is_gone()


@pytest.mark.parametrize(
    ("loading", "said"),
    [("raise-1", "failed: RuntimeError: a defect"), ("raise-0", "RuntimeError: a defect"), ("abort-2", "rank 2 (pid ")],
)
def test_a_crash_while_loading_ends_the_group(mpi: str, tmp_path: Path, loading: str, said: str) -> None:
    with Group(tmp_path, mpi, loading=loading) as group:
        reason = group.wait_exit()
        assert said in reason
        assert group.is_gone()


def test_a_group_ends_with_its_killed_supervisor(group: Group) -> None:
    group.supervisor.kill()
    assert group.wait_exit().startswith("killed by SIGKILL")
    assert group.is_gone()


def test_a_group_with_a_stopped_rank_ends_with_its_killed_supervisor(group: Group) -> None:
    os.kill(group.ask("pids")[1], signal.SIGSTOP)
    group.supervisor.kill()
    assert group.wait_exit().startswith("killed by SIGKILL")
    assert group.is_gone()


def test_a_group_ends_with_its_stage(group: Group) -> None:
    group.kill_stage()
    assert group.is_gone()
    assert "[rank 0] the leader stops in good order" in group.log()


def test_a_group_ends_with_its_mpiexec(group: Group) -> None:
    (mpiexec,) = group.supervisor.children()
    mpiexec.kill()
    assert group.wait_exit() == "exit status 1: mpiexec was killed by SIGKILL; the group is ended"
    assert group.is_gone()


def test_a_stage_that_is_gone_does_not_wait_for_a_hung_leader(group: Group) -> None:
    os.kill(group.ask("pids")[0], signal.SIGSTOP)
    group.kill_stage()
    assert group.is_gone()
