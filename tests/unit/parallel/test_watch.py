"""The watch, on a clock of its own."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import Heartbeat
from tandem.parallel.heartbeat import PERIOD_S
from tandem.parallel.watch import LOADING_SILENCE_S, START_TIMEOUT_S, Watch

HANG_S = 5.0


class Ranks:
    """Ranks on a clock: all that are not silent beat twice a second, all that do not stand still get on."""

    def __init__(self, hosts: list[str | None], phase: Literal["loading", "running"] = "running") -> None:
        self.now = 100.0
        self.watch = Watch(hosts, HANG_S, self.now)
        self.size = len(hosts)
        self.progress = [0] * self.size
        self.phases: list[Literal["loading", "running", "stopped", "failed"]] = [phase] * self.size
        self.pass_time(1.0)

    def pass_time(
        self, seconds: float, silent: tuple[int, ...] = (), still: tuple[int, ...] = ()
    ) -> tuple[float, str | None]:
        """Until a problem is seen, at most ``seconds``: the time it took, and the problem."""
        start = self.now
        while self.now < start + seconds:
            self.now += PERIOD_S
            for rank in range(self.size):
                if rank in silent:
                    continue
                self.progress[rank] += rank not in still
                beat = Heartbeat(pid=100 + rank, phase=self.phases[rank], progress=self.progress[rank])
                self.watch.hear(rank, beat, self.now)
            if (problem := self.watch.find_problem(self.now)) is not None:
                return self.now - start, problem
        return seconds, None


def test_ranks_that_get_on_are_well_for_ever() -> None:
    ranks = Ranks([None] * 3)
    assert ranks.pass_time(10_000) == (10_000, None)


@given(st.integers(1, 6), st.data())
def test_a_silent_rank_is_named_once_the_time_is_over(size: int, data: st.DataObject) -> None:
    ranks = Ranks([None] * size)
    rank = data.draw(st.integers(0, size - 1))
    everyone = tuple(range(size))  # the others wait for it in a collective
    took, problem = ranks.pass_time(60, silent=(rank,), still=everyone)
    assert HANG_S < took <= HANG_S + 2 * PERIOD_S
    assert (
        problem == f"rank {rank} (pid {100 + rank}) has been silent for 5 s: it is stopped, or its host or link is down"
    )


def test_all_ranks_of_a_lost_host_are_named() -> None:
    ranks = Ranks(["a", "a", "b", "b"])
    _, problem = ranks.pass_time(60, silent=(2, 3))
    assert problem is not None
    assert problem.startswith("rank 2 on b (pid 102), rank 3 on b (pid 103) have been silent for 5 s: they are stopped")


def test_a_standstill_of_all_is_no_ranks_fault() -> None:
    ranks = Ranks([None] * 3)
    took, problem = ranks.pass_time(60, still=(0, 1, 2))
    assert HANG_S < took <= HANG_S + 4 * PERIOD_S
    assert problem == "no rank has made progress for 5 s, though alive: the engine's step hangs"


def test_a_standstill_of_one_names_it() -> None:
    _, problem = Ranks([None] * 3).pass_time(60, still=(1,))
    assert problem == "rank 1 (pid 101) made no progress for 5 s, though alive: the engine's step hangs"


def test_loading_may_take_its_time_but_not_be_silent() -> None:
    ranks = Ranks([None] * 2, phase="loading")
    assert ranks.pass_time(1000, still=(0, 1)) == (1000, None)
    took, problem = ranks.pass_time(60, silent=(1,))
    assert LOADING_SILENCE_S < took <= LOADING_SILENCE_S + 2 * PERIOD_S
    assert problem is not None
    assert "rank 1 (pid 101) has been silent for 15 s" in problem


def test_ranks_that_have_loaded_wait_for_the_others() -> None:
    ranks = Ranks([None] * 2, phase="loading")
    ranks.phases[0] = "running"
    assert ranks.pass_time(1000, still=(0, 1)) == (1000, None)
    ranks.phases[1] = "running"
    took, problem = ranks.pass_time(60, still=(0, 1))
    assert took > HANG_S
    assert problem is not None


def test_a_rank_that_never_starts_is_named() -> None:
    watch = Watch([None, "b"], HANG_S, 0.0)
    watch.hear(0, Heartbeat(pid=100, phase="loading", progress=0), 1.0)
    for now in range(2, int(START_TIMEOUT_S)):
        assert watch.find_problem(float(now)) is None  # rank 0 waits for it, silently
    assert watch.find_problem(START_TIMEOUT_S + 0.5) == "rank 1 on b did not start within 60 s"


def test_who_stood_still_itself_blames_nobody() -> None:
    ranks = Ranks([None] * 3)
    assert ranks.watch.find_problem(ranks.now + 1000) is None
    ranks.now += 1000
    took, problem = ranks.pass_time(60, silent=(1,))
    assert took > HANG_S - PERIOD_S
    assert problem is not None


def test_the_first_failure_counts() -> None:
    ranks = Ranks([None] * 3)
    for rank, message in ((2, "a defect"), (0, "a consequence")):
        ranks.watch.hear(rank, Heartbeat(pid=100 + rank, phase="failed", progress=0, message=message), ranks.now)
    assert ranks.watch.find_problem(ranks.now) is None  # another one may turn out to have been killed before
    assert ranks.watch.find_end() == "rank 2 (pid 102) failed: a defect"
    assert ranks.watch.find_problem(ranks.now + 1.0) == ranks.watch.find_end()


def test_who_was_killed_came_before_who_failed_for_it() -> None:
    ranks = Ranks([None, None, "b"])
    for rank, phase, message in (
        (0, "failed", "a broken connection"),
        (1, "exited", "has ended with exit status 1"),
        (2, "killed", "was killed by SIGKILL"),
    ):
        ranks.watch.hear(rank, Heartbeat(pid=100 + rank, phase=phase, progress=0, message=message), ranks.now)
        problem = ranks.watch.find_problem(ranks.now + 0.1)
        assert problem == ("rank 2 on b (pid 102) was killed by SIGKILL" if phase == "killed" else None)


@pytest.mark.parametrize("phase", ["stopped", "running"])
def test_the_end_in_good_order(phase: Literal["stopped", "running"]) -> None:
    ranks = Ranks([None] * 2)
    ranks.phases = ["stopped", phase]
    assert ranks.pass_time(1000, still=(0, 1)) == (1000, None)
    assert ranks.watch.all_are("stopped") == (phase == "stopped")
