"""The stand-in on the path, as 1.2 unless a test chooses a version, and engines that end with the test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fakes
from tests.unit.tensorrt_llm.phases import VOCAB

MakeLLM = Callable[..., Any]


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as of the version that ``indirect`` names."""
    fakes.use(monkeypatch, getattr(request, "param", "1.2"))
    monkeypatch.setenv("FAKE_TRTLLM_STEP_MS", "0.2")
    import tensorrt_llm

    return tensorrt_llm


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = {"vocab_size": VOCAB, "max_position_embeddings": 256, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def make_llm(fake: Any, model_dir: Path) -> Iterator[MakeLLM]:
    """Engines that can do both phases; keywords are of ``LLM``, or of its transceiver and cache settings."""
    made: list[Any] = []

    def make(*, timeout_ms: int | None = 60_000, cache: dict[str, Any] | None = None, **settings: Any) -> Any:
        transceiver = {"backend": "UCX", "kv_transfer_timeout_ms": timeout_ms}
        chosen = {"cache_transceiver_config": transceiver, "disable_overlap_scheduler": True, **settings}
        kv_cache = {"tokens_per_block": 4, "event_buffer_max_size": 100, **(cache or {})}
        made.append(fake.LLM(model_dir, skip_tokenizer_init=True, kv_cache_config=kv_cache, **chosen))
        return made[-1]

    yield make
    for llm in made:
        llm.shutdown()
