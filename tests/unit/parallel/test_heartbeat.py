"""A rank's signs of life, in a process of its own; how processes of a group are found and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import msgspec
import psutil

from tandem.messages import Heartbeat
from tandem.parallel.heartbeat import LAST_WORDS, MAX_MESSAGE, PREFIX
from tandem.parallel.processes import TAG, end_group, find_group

DEADLINE_S = 30.0

RANK = """
import sys
from tandem.parallel import heartbeat
heartbeat.start(1)
sys.stdin.readline()
heartbeat.advance(); heartbeat.advance()
heartbeat.loaded()
sys.stdin.readline()
heartbeat.failed("broken \\n" * 1000)
sys.stdin.readline()
"""

HASTY = """
import sys
from tandem.parallel import heartbeat
sys.setswitchinterval(1e-6)
heartbeat.PERIOD_S = 0
heartbeat.start(1)
for _ in range(2000):
    heartbeat.advance()
    heartbeat.loaded()
print("a word", end="", file=sys.stderr)
print("more words", file=sys.stderr)
heartbeat.stopped()
"""


def start(program: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_each_phase_is_told_of_at_once_and_again() -> None:
    with start(RANK) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None

        def hear() -> Heartbeat:
            assert rank.stdout is not None
            line = rank.stdout.readline()
            assert len(PREFIX + line) < 4096  # in one piece, however many write to the pipe
            return msgspec.json.decode(line, type=Heartbeat)

        def go_on() -> None:
            assert rank.stdin is not None
            rank.stdin.write(b"\n")
            rank.stdin.flush()

        for _ in range(3):
            assert hear() == Heartbeat(pid=rank.pid, phase="loading", progress=0)
        go_on()
        while (beat := hear()).phase == "loading":
            assert beat.progress in (0, 1, 2)
        assert (beat.phase, beat.progress, hear().phase) == ("running", 2, "running")
        go_on()
        while (beat := hear()).phase == "running":
            pass
        assert beat.phase == "failed"
        assert beat.message == ("broken \n" * 1000)[:MAX_MESSAGE]
        rank.communicate(timeout=DEADLINE_S)


def test_none_comes_after_a_newer_one_and_no_word_after_the_last() -> None:
    with start(HASTY) as rank:
        said, words = rank.communicate(timeout=DEADLINE_S)
    beats = [msgspec.json.decode(line, type=Heartbeat) for line in said.splitlines()]
    order = [(("loading", "running", "stopped").index(beat.phase), beat.progress) for beat in beats]
    assert len(order) > 2000
    assert order == sorted(order)
    assert words.splitlines()[-2:] == [b"a wordmore words", LAST_WORDS]


def test_a_group_is_found_and_ended_wherever_its_processes_went() -> None:
    """In sessions of their own, orphaned, stopped, or with another environment."""
    tag, other = uuid.uuid4().hex, uuid.uuid4().hex
    script = "setsid sleep 600 & env -i /bin/sleep 600 & (sleep 600 &) ; kill -STOP $$ & wait"
    with start("import time; time.sleep(600)", **{TAG: other}) as bystander:
        with subprocess.Popen(["sh", "-c", script], env={**os.environ, TAG: tag}) as shell:
            process = psutil.Process(shell.pid)
            while process.status() != psutil.STATUS_STOPPED or len(find_group(tag)) < 4:
                assert shell.poll() is None
            group = find_group(tag)
            assert {p.pid for p in group} >= {shell.pid}
            assert end_group(tag)
            assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in group)
        assert find_group(tag) == []
        assert bystander.poll() is None
        assert end_group(other)
