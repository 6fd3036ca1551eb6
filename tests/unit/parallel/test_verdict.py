"""What MPICH 5.0 and Open MPI 5.0 said when a job ended, as it was recorded."""

from __future__ import annotations

from tandem.parallel.verdict import Word, summarize

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


def of_mpiexec(lines: list[str]) -> list[Word]:
    return [(None, line) for line in lines]


def test_a_summary_names_the_process_and_has_no_noise() -> None:
    assert summarize(of_mpiexec(MPICH_KILLED)) == (
        "BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES / PID 9 RUNNING AT 10.0.0.3 / EXIT CODE: 9"
    )
    assert summarize(of_mpiexec(OPENMPI_KILLED)) == (
        "prterun noticed that process rank 2 with PID 27 on node host3 exited on / signal 9 (Killed)."
    )
    assert summarize(of_mpiexec(MPICH_UNREACHABLE)) == "agent: connect to host 10.0.0.2: timed out"


def test_a_summary_is_short_and_of_mpiexec_alone() -> None:
    assert summarize([(1, "a rank's"), *of_mpiexec([RULE, "", "one", "two", "three", "four"])]) == "one / two / three"
