"""TensorRT-LLM itself on GPUs. `make test-gpu` runs these tests, `make test` does not: docs/tensorrt_llm.md says how.

TANDEM_TEST_GPUS    two of them, as "0,1", or one for all, as "0" (the default)
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.checkpoints import make_random_model
from tests.gpu.engines import ProcessEngine
from tests.unit.engines.conformance.conftest import pair, start  # noqa: F401
from tests.unit.engines.conformance.subjects import Subject

HEAD_DIM, LAYERS, KV_HEADS = 64, 3, 2
"""Of a size that there are attention kernels for."""
GPUS = os.environ.get("TANDEM_TEST_GPUS", "0").split(",")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what it says has no meaning, but always the same one. 400 tokens, and a context of 512."""
    return make_random_model(
        "llama",
        tmp_path_factory.mktemp("gpu"),
        vocab_size=400,
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        num_hidden_layers=LAYERS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(
        "tensorrt_llm",
        token_bytes=LAYERS * 2 * KV_HEADS * HEAD_DIM * 2,
        worker={},
        dtype="bfloat16",
        block_size=32,
        devices={"prefill_0": f"cuda:{GPUS[0]}", "decode_0": f"cuda:{GPUS[-1]}", "decode_1": f"cuda:{GPUS[-1]}"},
        start=lambda deployment, worker, _epoch: ProcessEngine(deployment, worker),
        samples_alike=False,
        moves_kv_itself=False,
    )
