"""Doing what a plan says. A step whose output is there is not done again; one that was interrupted leaves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import TandemError
from tandem.recipes.commands import Step
from tandem.recipes.plan import Plan, check_tools

Progress = Callable[[str], None]
"""Takes what is being done, whenever that changes."""
TAIL_LINES = 12
TERMINATE_S = 5.0


def run_plan(plan: Plan, progress: Progress) -> None:
    """Make everything that is not there yet.

    Raises:
        TandemError: ``environment``: a tool is missing, another build is at work, or the directory cannot be written;
            ``engine_failed``: a step failed; the text quotes its last words.
    """
    todo = [step for step in plan.steps if not step.output.is_dir()]
    if todo:
        check_tools(plan)
    try:
        plan.directory.mkdir(parents=True, exist_ok=True)
        with _alone(plan.directory):
            for number, step in enumerate(todo, 1):
                progress(f"{number} of {len(todo)}: {step.title}")
                run_step(step, plan.directory / "logs")
            for path, text in plan.files.items():
                path.write_text(text)
    except OSError as error:
        raise TandemError("environment", f"{plan.directory} cannot be written: {error}") from error


def run_step(step: Step, logs: Path) -> None:
    """Run one command into a directory that gets its name in the end.

    Raises:
        TandemError: ``engine_failed``.
    """
    partial = step.output.with_name(f"{step.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    logs.mkdir(exist_ok=True)
    log_file = logs / f"{step.output.name}.log"
    command = [str(partial) if word == str(step.output) else word for word in step.command]
    try:
        with log_file.open("wb") as log:
            status = _run(command, log.fileno())
        if status:
            words = "\n".join(log_file.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise TandemError("engine_failed", f"{step.title}: exit status {status}; the end of {log_file}:\n{words}")
        partial.rename(step.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str], output: int) -> int:
    """Run a command to its end; whatever interrupts this ends it, and all that it has started."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=_environment()
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # mpirun takes its ranks along
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One build of a recipe at a time; the lock goes with the process that holds it."""
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TandemError("environment", f"another build is at work in {directory}") from error
        yield
