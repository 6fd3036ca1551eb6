"""A prefill and a decode engine of each kind, paired, for all tests of a file; and others made to measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem.keys import KEY_VARIABLE
from tests.unit.engines.conformance.harness import Harness
from tests.unit.engines.conformance.subjects import SUBJECTS, Subject, make_model_dir

KEY = "5a" * 32
_epochs = itertools.count(1)


@dataclass(frozen=True)
class Pair:
    """Two engines that know each other."""

    prefill: Harness
    decode: Harness
    temperature: float = 1.0
    """For what has to come out alike on either."""


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda s: s.engine)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    return found


@pytest.fixture(scope="module")
def start(subject: Subject, model_dir: Path) -> Iterator[Callable[..., Harness]]:
    """Starts one more engine: ``start("prefill_0", lease_s=…, blocks=…)``; all are stopped in the end."""
    started: list[Harness] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        subject.prepare(patch)

        def start_one(worker: str, **options: Any) -> Harness:
            deployment = subject.deploy(model_dir, **options)
            engine = subject.build(deployment, deployment.find_worker(worker), next(_epochs))
            started.append(Harness(engine, lets_go_at_once=subject.moves_kv_itself))
            return started[-1]

        yield start_one
    for harness in started:
        harness.engine.stop()


@pytest.fixture(scope="module")
def pair(start: Callable[..., Harness], subject: Subject) -> Pair:
    prefill, decode = start("prefill_0"), start("decode_0")
    introduce(prefill, decode)
    return Pair(prefill, decode, temperature=1.0 if subject.samples_alike else 0.0)


@pytest.fixture
def stalled_pair(subject: Subject, start: Callable[..., Harness]) -> Callable[[float], Pair]:
    """A pair between which no KV moves: pulls end at their deadline, given in seconds, and not before."""

    def make(transfer_timeout_s: float) -> Pair:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in subject.stall.items():
                patch.setenv(name, value)
            prefill = start("prefill_0")
        decode = start("decode_0", transfer_timeout_s=transfer_timeout_s)
        decode.engine.pair(prefill.engine.info)  # and not the other way round
        return Pair(prefill, decode)

    return make


def introduce(one: Harness, other: Harness) -> None:
    """Pair two engines with each other."""
    one.engine.pair(other.engine.info)
    other.engine.pair(one.engine.info)
