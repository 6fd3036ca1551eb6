"""What is looked for in TensorRT-LLM, and how it is said that something is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tandem.engines.tensorrt_llm.arguments import make_arguments
from tandem.engines.tensorrt_llm.identity import fingerprint, make_kv_format, read_shape
from tandem.engines.tensorrt_llm.library import load_library
from tandem.errors import TandemError
from tests import fakes
from tests.unit.engines.tensorrt_llm.conftest import deploy


def test_what_a_version_lacks_is_named(fake: pytest.MonkeyPatch) -> None:
    configs = importlib.import_module("tensorrt_llm.llmapi")
    fields = dict(configs.CacheTransceiverConfig.model_fields)
    del fields["kv_transfer_timeout_ms"]
    fake.setattr(configs.CacheTransceiverConfig, "model_fields", fields)
    fake.setattr(configs, "GuidedDecodingParams", None)
    with pytest.raises(TandemError) as error:
        load_library()
    assert error.value.code == "environment"
    for missing in ("CacheTransceiverConfig.kv_transfer_timeout_ms", "tensorrt_llm.llmapi.GuidedDecodingParams"):
        assert missing in error.value.message
    assert "TensorRT-LLM 1.2.1 lacks" in error.value.message


def test_without_it_the_way_to_it_is_told() -> None:
    with pytest.raises(TandemError, match=r"'tensorrt_llm' cannot be imported: .*docs/tensorrt_llm.md"):
        load_library()


def test_built_engines_are_of_the_versions_that_have_them(fake: pytest.MonkeyPatch) -> None:
    assert not load_library(built=True).LLM.is_pytorch
    fakes.use(fake, "1.3")
    with pytest.raises(TandemError, match=r"engine_dir: TensorRT-LLM 1.3.0rc29 has no .*; leave engine_dir out"):
        load_library(built=True)


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.4"])
@pytest.mark.parametrize("stage", ["prefill_0", "decode_0"])
def test_arguments(fake: pytest.MonkeyPatch, model_dir: Path, version: str, stage: str) -> None:
    """A transfer always has a backend and a deadline; a context phase never the overlap scheduler."""
    fakes.use(fake, version)
    library = load_library()
    deployment = deploy(model_dir, kv={"lease_s": 5.0, "transfer_timeout_s": 2.0}, kv_fraction=0.8)
    worker = deployment.find_worker(stage)
    kv = make_kv_format(deployment, worker, read_shape(model_dir))
    given: dict[str, Any] = make_arguments(library, deployment, worker, kv, 256)
    library.LLM(**given).shutdown()
    transceiver = given["cache_transceiver_config"]
    assert (transceiver.backend, transceiver.max_tokens_in_buffer) == ("NIXL", 256)
    assert transceiver.kv_transfer_timeout_ms == (7000 if stage == "prefill_0" else 2000)
    assert given["disable_overlap_scheduler"] == (stage == "prefill_0")
    assert (given["kv_cache_config"].free_gpu_memory_fraction, given["kv_cache_config"].max_tokens) == (0.8, None)
    assert given["kv_cache_config"].tokens_per_block == 4


def test_a_checkpoint_has_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TandemError, match=r"model.path: no \*.safetensors"):
        fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint(tmp_path) != first
    (tmp_path / "tandem.json").write_text('{"fingerprint": "written"}')
    assert fingerprint(tmp_path) == "written"
