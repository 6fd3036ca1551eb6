"""Real engine processes for tests of the stage: small engines that do no more than the test needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tandem.deployment import Deployment, Model, Worker, to_json
from tandem.messages import AnyWork, Prefill, Sampling, Stopping

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
"""Only a broken process takes this long."""
WORKER = Worker(name="prefill_0", stage="prefill", max_batch_size=2, max_queue=3)
DEPLOYMENT = Deployment(name="test", model=Model(path="/nowhere/model"), worker=[WORKER])


def use_engine(directory: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> Path:
    """Have engine processes run a factory of ``echo_engine``, by the interpreter they are started with; returns the
    deployment file."""
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --engine tests.unit.engines.echo_engine:{factory}\n')
    python.chmod(0o755)
    monkeypatch.setenv("TANDEM_PYTHON", str(python))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    file = directory / "deployment.json"
    file.write_bytes(to_json(DEPLOYMENT))
    return file


def work(request_id: str, *token_ids: int) -> AnyWork:
    """``raise`` as an id breaks the engine at once, ``thread`` a moment later and without an answer."""
    return Prefill(
        request_id=request_id, token_ids=list(token_ids), sampling=Sampling(), stopping=Stopping(max_tokens=1)
    )


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def engine_processes() -> list[psutil.Process]:
    """Engine processes below this one."""
    return [p for p in psutil.Process().children() if "tandem.engines.server" in p.cmdline()]
