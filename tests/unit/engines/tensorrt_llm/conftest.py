"""Engines on TensorRT-LLM's stand-in, made to measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Deployment, Kv, Model, TensorRtLlm, Worker
from tandem.engines.tensorrt_llm.engine import TensorRtLlmEngine, create
from tandem.kv.handle import KEY_VARIABLE
from tests import fakes
from tests.unit.engines.conformance.harness import Harness
from tests.unit.engines.torch.support import make_model

Start = Callable[..., Harness]
_epochs = itertools.count(1)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("tensorrt_llm"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stand-in can be imported, and nothing that it does to the environment stays."""
    fakes.use(monkeypatch)
    monkeypatch.setenv(KEY_VARIABLE, "5a" * 32)
    for name in ("CUDA_VISIBLE_DEVICES", "TRTLLM_VISIBLE_DEVICES", "TRTLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "0")
    return monkeypatch


def deploy(model_dir: Path, *, kv: dict[str, Any] | None = None, **section: Any) -> Deployment:
    common: dict[str, Any] = {"engine": "tensorrt_llm", "devices": ["cuda:0"], "kv_memory": "1MiB"}
    common["tensorrt_llm"] = TensorRtLlm(**section)
    return Deployment(
        name="test",
        model=Model(path=str(model_dir), dtype="float32", max_model_len=256),
        worker=[
            Worker(name="prefill_0", stage="prefill", **common),
            Worker(name="decode_0", stage="decode", **common),
        ],
        kv=Kv(**{"block_size": 4} | (kv or {})),
    )


@pytest.fixture
def start(fake: pytest.MonkeyPatch, model_dir: Path) -> Iterator[Start]:  # noqa: ARG001
    """``start("decode_0", kv={…}, …fields of [worker.tensorrt_llm])``; all are stopped in the end."""
    started: list[Harness] = []

    def start_one(name: str, **options: Any) -> Harness:
        deployment = deploy(model_dir, **options)
        engine = create(deployment, deployment.find_worker(name), next(_epochs), lambda _what, _done: None)
        started.append(Harness(engine))
        return started[-1]

    yield start_one
    for harness in started:
        harness.engine.stop()


def library_of(harness: Harness) -> Any:
    """The ``LLM`` of an engine, whose faults can be armed."""
    assert isinstance(harness.engine, TensorRtLlmEngine)
    return harness.engine._llm
