"""The guard of a rank, without MPI: what it says of the rank's end, and that nothing of a rank is left, however it or
what started it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tandem.messages import Heartbeat
from tandem.parallel.heartbeat import PREFIX
from tandem.parallel.shared_memory import SETTINGS

DEADLINE_S = 30.0

RANK = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
from tandem.parallel import guard, heartbeat
(way,) = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
heartbeat.start(guard.split(0.5))
Path(os.environ["{SETTINGS[0]}"], "segment").write_text("in the group's directory")
subprocess.Popen(["sleep", "600"])
print("a stray line")
heartbeat.advance()
heartbeat.loaded()
signal.sigwait([signal.SIGUSR1])
if way == "exit":
    os._exit(3)
if way == "fail":
    heartbeat.failed("a defect")
    os._exit(1)
if way.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, way))
while True:
    if way != "stand still":
        heartbeat.advance()
    time.sleep(0.1)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


class Guarded:
    """A launcher, in place of mpiexec; what it starts, the guard, the rank, and what that starts."""

    def __init__(self, way: str) -> None:
        tag = uuid.uuid4().hex
        self.directory = Path(f"/dev/shm/tandem-{tag}")
        self.launcher = psutil.Popen(
            [sys.executable, "-c", LAUNCHER, RANK, way],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, SETTINGS[0]: str(self.directory)},
        )
        self.processes: list[psutil.Process] = []
        self.hear("running")
        self.processes = [self.launcher, *self.launcher.children(recursive=True)]
        _, self.stand_in, self.guard, self.rank, _ = self.processes
        self.rank.send_signal(signal.SIGUSR1)

    def hear(self, *phases: str) -> Heartbeat:
        """The next heartbeat with one of these phases."""
        while True:
            line = self.launcher.stdout.readline()
            assert line.startswith(PREFIX)
            beat = msgspec.json.decode(line[len(PREFIX) :], type=Heartbeat)
            if beat.phase in phases:
                return beat

    def leaves_nothing(self) -> bool:
        """Whether all has ended, which is waited for, and nothing is left."""
        assert psutil.wait_procs(self.processes, DEADLINE_S)[1] == []
        assert not self.directory.exists()
        return True


@pytest.fixture
def start() -> Iterator[Callable[[str], Guarded]]:
    started: list[Guarded] = []

    def start(way: str) -> Guarded:
        started.append(Guarded(way))
        return started[-1]

    yield start
    for guarded in started:
        for process in filter(psutil.Process.is_running, guarded.processes):
            process.kill()
        guarded.launcher.stdout.close()
        guarded.launcher.wait(DEADLINE_S)


@pytest.mark.parametrize(
    ("way", "phase", "message"),
    [
        ("exit", "exited", "has ended with exit status 3"),
        ("SIGABRT", "exited", "was killed by SIGABRT"),
        ("SIGKILL", "killed", "was killed by SIGKILL"),
        ("SIGSEGV", "killed", "was killed by SIGSEGV"),
        ("fail", "failed", "a defect"),
    ],
)
def test_it_says_how_the_rank_has_ended(start: Callable[[str], Guarded], way: str, phase: str, message: str) -> None:
    guarded = start(way)
    beat = guarded.hear("exited", "killed", "failed")
    assert (beat.phase, beat.message, beat.progress) == (phase, message, 1)
    assert beat.pid == guarded.rank.pid
    if way != "fail":  # which the guard takes for a rank that has waited to be ended
        guarded.launcher.kill()
    assert guarded.leaves_nothing()


@pytest.mark.parametrize("end", ["the launcher is killed", "mpiexec kills its process", "nobody listens any more"])
def test_the_rank_ends_with_what_started_it(start: Callable[[str], Guarded], end: str) -> None:
    guarded = start("go on")
    if end == "the launcher is killed":
        guarded.launcher.kill()
    elif end == "mpiexec kills its process":
        guarded.stand_in.kill()
    else:
        guarded.launcher.stdout.close()
    assert guarded.leaves_nothing()


@pytest.mark.parametrize("way", ["stand still", "SIGSTOP"])
def test_a_rank_that_hangs_and_is_not_ended_is_alone(start: Callable[[str], Guarded], way: str) -> None:
    """Its supervisor cannot reach this host; the launcher, which may wait for it, is ended as well."""
    guarded = start(way)
    guarded.launcher.suspend()
    assert guarded.leaves_nothing()
