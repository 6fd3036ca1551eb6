"""A prefill and a decode engine of each kind, paired, for all tests of a file; and others made to measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem.engines.registry import find_engine
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

        def start_one(worker: str, **options: Any) -> Harness:
            deployment = subject.deploy(model_dir, **options)
            create = find_engine(subject.engine)
            engine = create(deployment, deployment.find_worker(worker), next(_epochs), lambda _what, _done: None)
            started.append(Harness(engine))
            return started[-1]

        yield start_one
    for harness in started:
        harness.engine.stop()


@pytest.fixture(scope="module")
def pair(start: Callable[..., Harness]) -> Pair:
    prefill, decode = start("prefill_0"), start("decode_0")
    introduce(prefill, decode)
    return Pair(prefill, decode)


def introduce(one: Harness, other: Harness) -> None:
    """Pair two engines with each other."""
    one.engine.pair(other.engine.info)
    other.engine.pair(one.engine.info)
