"""A keeper and its engine group: what befalls a rank is told with the cause, and the group comes back whole."""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.deployment import Deployment, Model, Parallel, Worker, to_json
from tandem.messages import Events, Prefill, Sampling, Start, Stopping, Tokens
from tandem.stage.keeper import EngineKeeper
from tests.unit.parallel.groups import DEADLINE_S, HANG_TIMEOUT_S, ROOT, wait_until


class Kept:
    """A keeper under test, and what it told."""

    def __init__(self, file: Path) -> None:
        self.answers: queue.Queue[list[int]] = queue.Queue()
        self.losses: queue.Queue[str] = queue.Queue()
        log_file = file.parent / "engine.log"
        self.keeper = EngineKeeper(file, "prefill_0", log_file, self._on_events, self.losses.put)

    def _on_events(self, report: Events) -> None:
        for event in report.events:
            if isinstance(event, Tokens):
                self.answers.put(event.token_ids)

    def ask(self, what: str) -> list[int]:
        work = Prefill(request_id=what, token_ids=[1], sampling=Sampling(), stopping=Stopping(max_tokens=1))
        assert self.keeper.send(Start(work=[work]))
        return self.answers.get(timeout=DEADLINE_S)


@pytest.fixture(params=["mpich", "openmpi"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --engine tests.unit.parallel.engine:create\n')
    python.chmod(0o755)
    monkeypatch.setenv("TANDEM_PYTHON", str(python))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = Worker(name="prefill_0", stage="prefill", tensor_parallel_size=2)
    parallel = Parallel(mpi=request.param, hang_timeout_s=HANG_TIMEOUT_S)
    file = tmp_path / "deployment.json"
    file.write_bytes(to_json(Deployment(name="t", model=Model(path="/m"), worker=[worker], parallel=parallel)))
    kept = Kept(file)
    kept.keeper.start()
    yield kept
    kept.keeper.stop()
    assert list(tmp_path.glob("tandem-*")) == []


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, ""), (signal.SIGSTOP, "has been silent for 2 s")], ids=["kill", "stop"]
)
def test_the_group_comes_back_whole(kept: Kept, number: signal.Signals, cause: str) -> None:
    before = kept.keeper.info
    assert before is not None
    first = kept.ask("pids")
    os.kill(first[1], number)
    reason = kept.losses.get(timeout=DEADLINE_S)
    assert reason.startswith(f"exit status 1: rank 1 (pid {first[1]}) ")
    assert cause in reason
    wait_until(lambda: kept.keeper.info)
    after = kept.keeper.info
    assert after is not None
    assert after.epoch > before.epoch
    assert set(kept.ask("pids")).isdisjoint(first)
    assert kept.ask("sum-10") == [3, 3]
