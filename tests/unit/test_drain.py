"""How a run is told to come to an end."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

from tandem.drain import DrainMark, drain

DEADLINE_S = 20.0


def test_where_nothing_is_open_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert drain(tmp_path, DEADLINE_S)
    assert list(tmp_path.iterdir()) == []


def test_who_asks_waits_until_every_model_has_finished(tmp_path: Path) -> None:
    marks, results = [DrainMark(tmp_path, name) for name in ("llm", "decode_0")], list[bool]()
    for mark in marks:
        mark.opened()
    assert not any(mark.asked for mark in marks)
    thread = threading.Thread(target=lambda: results.append(drain(tmp_path, DEADLINE_S)))
    thread.start()
    end = time.monotonic() + DEADLINE_S
    while not marks[1].asked and time.monotonic() < end:
        time.sleep(0.01)
    assert all(mark.asked for mark in marks)
    marks[0].closed()
    marks[0].closed()  # again is no error
    time.sleep(0.1)
    assert results == []
    marks[1].closed()
    thread.join(DEADLINE_S)
    assert results == [True]


def test_a_model_that_does_not_finish_is_told_of(tmp_path: Path) -> None:
    mark = DrainMark(tmp_path, "llm")
    mark.opened()
    assert not drain(tmp_path, 0.05)
    assert mark.asked


def test_nobody_waits_for_a_process_that_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    DrainMark(tmp_path, "llm").opened()
    (tmp_path / "open-llm").write_text(str(gone.pid))
    assert gone.wait() == 0
    assert drain(tmp_path, DEADLINE_S)
    assert not DrainMark(tmp_path, "llm").asked
