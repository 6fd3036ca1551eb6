"""What MPICH 5.0 and Open MPI 5.0 said when a rank was lost, as it was recorded."""

from __future__ import annotations

import pytest

from tandem.parallel.verdict import Word, find_bereaved, find_culprit, summarize

PIDS = [18, 9, 9]
HOSTS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
RULE = "=" * 83

MPICH_KILLED = [
    RULE,
    "=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES",
    "=   PID 9 RUNNING AT 10.0.0.3",
    "=   EXIT CODE: 9",
    "=   CLEANING UP REMAINING PROCESSES",
    RULE,
    "[proxy:0@host1] main (/mpich-5.0.2/src/pm/hydra/proxy/pmip.c:123): demux engine error waiting for event",
]
MPICH_UNREACHABLE = [
    "agent: connect to host 10.0.0.2: timed out",
    "[mpiexec@host1] ui_cmd_cb (/mpich-5.0.2/src/pm/hydra/mpiexec/pmiserv_pmci.c:51): Launch proxy failed.",
    "[mpiexec@host1] main (/mpich-5.0.2/src/pm/hydra/mpiexec/mpiexec.c:270): process manager error",
]
OPENMPI_KILLED = [
    "-" * 74,
    "prterun noticed that process rank 2 with PID 27 on node host3 exited on",
    "signal 9 (Killed).",
    "-" * 74,
]
OPENMPI_EXITED = [
    "prterun detected that one or more processes exited with non-zero status,",
    "thus causing the job to be terminated. The first process to do so was:",
    "",
    "   Process name: [prterun-vm-13225@1,1]",
    "   Exit code:    3",
]
OPENMPI_ABORTED = [
    "prterun has exited due to process rank 1 with PID 0 on node host2 calling",
    '"abort". This may have caused other processes in the application to be',
]


def of_mpiexec(lines: list[str]) -> list[Word]:
    return [(None, line) for line in lines]


@pytest.mark.parametrize(
    ("said", "rank"), [(MPICH_KILLED, 2), (OPENMPI_KILLED, 2), (OPENMPI_EXITED, 1), (OPENMPI_ABORTED, None), ([], None)]
)
def test_the_culprit(said: list[str], rank: int | None) -> None:
    assert find_culprit(of_mpiexec(said), PIDS, HOSTS) == rank


def test_on_one_host_the_process_id_says_it_all() -> None:
    said = of_mpiexec(["=   PID 42 RUNNING AT vm"])
    assert find_culprit(said, [41, 42, None], [None] * 3) == 1
    assert find_culprit(said, [41, 43, None], [None] * 3) is None


def test_ranks_may_not_name_a_culprit() -> None:
    assert find_culprit([(0, "PID 9 RUNNING AT 10.0.0.3")], PIDS, HOSTS) is None


def test_who_lost_its_connection_is_bereaved() -> None:
    lost: list[Word] = [(0, "loaded"), (2, "[host3:00000] *** An error occurred in Socket closed")]
    assert find_bereaved(lost + of_mpiexec(OPENMPI_ABORTED)) == 2
    assert find_bereaved(of_mpiexec(OPENMPI_ABORTED)) == 1
    assert find_bereaved(of_mpiexec(OPENMPI_KILLED)) is None


def test_a_summary_has_no_noise() -> None:
    assert summarize(of_mpiexec(MPICH_UNREACHABLE)) == "agent: connect to host 10.0.0.2: timed out"
    assert summarize([(1, "a rank's"), *of_mpiexec([RULE, "", "one", "two", "three", "four"])]) == "one / two / three"
