"""The engine's keeper, with real engine processes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tandem.errors import TandemError
from tandem.messages import EngineEvent, Events, Finished, Start, Tokens
from tandem.stage.keeper import EngineKeeper
from tests.unit.stage.engines import DEADLINE_S, engine_processes, use_engine, wait_until, work


class Kept:
    """A keeper under test, and what it told."""

    def __init__(self, file: Path) -> None:
        self.events: queue.Queue[EngineEvent] = queue.Queue()
        self.losses: queue.Queue[str] = queue.Queue()
        self.deaf = False
        self.keeper = EngineKeeper(file, "prefill_0", file.parent / "logs" / "e.log", self._on_events, self._on_lost)

    def _on_events(self, report: Events) -> None:
        for event in report.events:
            self.events.put(event)

    def _on_lost(self, reason: str) -> None:
        self.losses.put(reason)
        if self.deaf:
            raise RuntimeError("cannot listen")


Keep = Callable[[str], Kept]


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    kept: list[Kept] = []

    def make(factory: str) -> Kept:
        kept.append(Kept(use_engine(tmp_path, monkeypatch, factory)))
        return kept[-1]

    yield make
    for one in kept:
        one.keeper.stop()
    assert engine_processes() == []


def test_passes_commands_and_events_on(keep: Keep) -> None:
    kept = keep("create")
    info = kept.keeper.start()
    assert kept.keeper.info == info
    assert (info.worker_id, info.engine) == ("prefill_0", "echo")
    assert kept.keeper.send(Start(work=[work("a", 4, 5)]))
    assert kept.events.get(timeout=DEADLINE_S) == Tokens(request_id="a", index=0, token_ids=[4, 5])
    assert kept.events.get(timeout=DEADLINE_S) == Finished(request_id="a", reason="stop")


def test_an_engine_that_breaks_is_told_of_and_replaced(keep: Keep) -> None:
    kept = keep("create")
    first = kept.keeper.start()
    kept.keeper.send(Start(work=[work("raise")]))
    reason = kept.losses.get(timeout=DEADLINE_S)
    assert reason == "exit status 1: RuntimeError: the engine broke"
    wait_until(lambda: kept.keeper.info)
    second = kept.keeper.info
    assert second is not None
    assert second.epoch != first.epoch
    assert kept.keeper.send(Start(work=[work("b", 6)]))
    assert kept.events.get(timeout=DEADLINE_S) == Tokens(request_id="b", index=0, token_ids=[6])
    assert kept.losses.empty()


def test_nothing_is_sent_to_an_engine_that_is_gone(keep: Keep) -> None:
    kept = keep("create")
    kept.keeper.start()
    (engine,) = engine_processes()
    engine.kill()
    assert "SIGKILL" in kept.losses.get(timeout=DEADLINE_S)
    assert kept.keeper.info is None or kept.keeper.send(Start(work=[]))
    wait_until(lambda: kept.keeper.info)


def test_who_does_not_take_the_loss_does_not_keep_the_next_engine_away(keep: Keep) -> None:
    kept = keep("create")
    first = kept.keeper.start()
    kept.deaf = True
    kept.keeper.send(Start(work=[work("raise")]))
    kept.losses.get(timeout=DEADLINE_S)
    wait_until(lambda: kept.keeper.info is not None and kept.keeper.info.epoch != first.epoch)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("create_never", "model.path: /nowhere/model has no config.json; run build/convert.py"),
        ("create_broken", "ZeroDivisionError: a defect"),
        ("create_crashing", "killed by SIGABRT"),
    ],
)
def test_a_first_start_that_fails_says_why_in_the_engines_words(keep: Keep, factory: str, said: str) -> None:
    kept = keep(factory)
    with pytest.raises(TandemError) as caught:
        kept.keeper.start()
    assert caught.value.code == "engine_failed"
    assert "worker prefill_0: " in caught.value.message
    assert said in caught.value.message
    assert "e.log" in caught.value.message
    assert engine_processes() == []
    assert kept.losses.empty()


def test_loading_may_take_long_as_long_as_it_goes_on(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.stage.keeper.START_TIMEOUT_S", 4.0)
    assert keep("create_by_and_by").keeper.start().engine == "echo"


def test_loading_that_does_not_go_on_is_given_up(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.stage.keeper.START_TIMEOUT_S", 4.0)
    with pytest.raises(TandemError, match=r"no progress for 4 s \(weights, 25 %\)"):
        keep("create_slowly").keeper.start()
    assert engine_processes() == []


def test_stopping_ends_the_process_and_starts_no_other(keep: Keep) -> None:
    kept = keep("create")
    kept.keeper.start()
    (engine,) = engine_processes()
    kept.keeper.stop()
    assert not engine.is_running()
    assert kept.keeper.info is None
    assert not kept.keeper.send(Start(work=[work("a", 1)]))
    assert kept.losses.empty()
