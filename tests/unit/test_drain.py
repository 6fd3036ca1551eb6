"""How a run is told to come to an end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tandem.drain import DrainMark

DEADLINE_S = 20.0


def test_where_no_lane_is_open_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert DrainMark(tmp_path).ask(DEADLINE_S)
    assert not DrainMark(tmp_path).asked
    assert list(tmp_path.iterdir()) == []


def test_who_asks_waits_until_the_lanes_are_closed(tmp_path: Path) -> None:
    mine, results = DrainMark(tmp_path), list[bool]()
    mine.opened()
    assert not mine.asked
    thread = threading.Thread(target=lambda: results.append(DrainMark(tmp_path).ask(DEADLINE_S)))
    thread.start()
    end = time.monotonic() + DEADLINE_S
    while not mine.asked and time.monotonic() < end:
        time.sleep(0.01)
    assert mine.asked
    assert results == []
    mine.closed()
    thread.join(DEADLINE_S)
    assert results == [True]


def test_lanes_that_stay_open_are_told_of(tmp_path: Path) -> None:
    DrainMark(tmp_path).opened()
    assert not DrainMark(tmp_path).ask(0.05)
    assert DrainMark(tmp_path).asked


def test_closing_twice_is_no_error(tmp_path: Path) -> None:
    mark = DrainMark(tmp_path)
    mark.opened()
    mark.closed()
    mark.closed()
    assert mark.ask(DEADLINE_S)
