"""Run directories, and ending the processes of a run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.triton.processes import RUN_VARIABLE, end_run, find_processes, shared_memory_prefix
from tandem.triton.run_directory import RunDirectory

DIE_WITH_A_RUN = """
import os, sys
from pathlib import Path
from tandem.triton.run_directory import RunDirectory
run = RunDirectory.create(Path(sys.argv[1]), "dead")
run.models.mkdir()
(run.logs / "triton.log").write_text("last words")
print(run.run_id, run.path, flush=True)
os._exit(9)
"""


@pytest.fixture
def marked() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be found; ended in any case."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start_marked(run_id: str, code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, RUN_VARIABLE: run_id}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # it runs
    return process


def die_with_a_run(home: Path) -> tuple[str, Path]:
    command = [sys.executable, "-c", DIE_WITH_A_RUN, str(home)]
    run_id, path = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return run_id, Path(path)


def test_two_runs_of_one_process_get_different_directories(tmp_path: Path) -> None:
    first, second = RunDirectory.create(tmp_path, "d"), RunDirectory.create(tmp_path, "d")
    assert first.path.name == f"d-{os.getpid()}"
    assert second.path.name == f"d-{os.getpid()}-2"
    assert first.run_id != second.run_id
    first.close()
    second.close()


def test_living_run_is_left_alone(tmp_path: Path) -> None:
    living = RunDirectory.create(tmp_path, "living")
    living.models.mkdir()
    for _ in range(8):
        RunDirectory.create(tmp_path, "short").close()
    assert living.models.is_dir()
    living.close()


def test_dead_run_is_cleaned_up_by_the_next(tmp_path: Path, marked: list[subprocess.Popen[bytes]]) -> None:
    run_id, path = die_with_a_run(tmp_path)
    marked.append(start_marked(run_id, "import time; print(flush=True); time.sleep(600)"))
    region = Path("/dev/shm") / f"{shared_memory_prefix(run_id)}test"
    region.write_bytes(b"left")
    RunDirectory.create(tmp_path, "next").close()
    assert marked[0].wait(10) == -9
    assert not region.exists()
    assert not (path / "models").exists()
    assert (path / "logs" / "triton.log").read_text() == "last words"


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    paths = []
    for number in range(23):
        run = RunDirectory.create(tmp_path, f"run{number}")
        run.close()
        os.utime(run.path, (number, number))
        paths.append(run.path)
    RunDirectory.create(tmp_path, "last").close()
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 20


def test_end_run_kills_what_ignores_the_request(marked: list[subprocess.Popen[bytes]]) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    marked.append(start_marked("feed0001", deaf))
    marked.append(start_marked("feed0002", "import time; print(flush=True); time.sleep(600)"))
    assert [p.pid for p in find_processes("feed0001")] == [marked[0].pid]
    end_run("feed0001", grace_s=0.1)
    assert marked[0].wait(10) == -9
    assert marked[1].poll() is None, "a process of another run was ended"
