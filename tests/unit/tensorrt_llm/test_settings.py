"""The stand-in refuses what the real classes refuse, and has in each version what that version has."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.fakes.tensorrt_llm_contract import read_contract
from tests.unit.tensorrt_llm.conftest import MakeLLM


def test_settings_that_the_real_classes_refuse_are_refused(fake: Any, make_llm: MakeLLM):
    from tensorrt_llm.llmapi import CacheTransceiverConfig, KvCacheConfig

    for wrong in (
        lambda: KvCacheConfig(block_size=4),
        lambda: KvCacheConfig(free_gpu_memory_fraction=1.5),
        lambda: CacheTransceiverConfig(backend="ucx"),
        lambda: CacheTransceiverConfig(backend="UCX", kv_transfer_timeout_ms=0),
        lambda: make_llm(max_model_len=5),
        lambda: make_llm(max_batch_size="many"),
        lambda: fake.DisaggregatedParams(request_type="prefill"),
        lambda: fake.SamplingParams(top_p=2.0),
    ):
        with pytest.raises(
            ValueError, match=r"not permitted|less than|DEFAULT|greater|invalid argument|valid int|Unkn|ran"
        ):
            wrong()
    with pytest.raises(TypeError, match="unexpected keyword"):
        fake.SamplingParams(max_new_tokens=5)
    with pytest.raises(RuntimeError, match="Only 1 GPUs are available, but 2"):
        make_llm(tensor_parallel_size=2)


@pytest.mark.parametrize("fake", ["1.2", "1.3", "1.4"], indirect=True)
def test_every_class_is_where_the_description_says_and_nowhere_else(fake: Any):
    for name, described in read_contract().items():
        for module, versions in described.places().items():
            there = hasattr(importlib.import_module(module), "LLM" if name == "BuiltEngineLLM" else name)
            assert there == any(fake.__version__.startswith(version) for version in versions), (module, name)


@pytest.mark.parametrize(
    ("fake", "number", "shared_id"), [("1.2", "1.2.1", False), ("1.4", "1.4.0rc1", True)], indirect=["fake"]
)
def test_a_version_has_its_own_fields_and_defaults(fake: Any, make_llm: MakeLLM, number: str, shared_id: bool):
    from tensorrt_llm.llmapi import CacheTransceiverConfig

    assert fake.__version__ == number
    assert ("disagg_request_id" in fake.DisaggregatedParams.__dataclass_fields__) == shared_id
    assert CacheTransceiverConfig().kv_transfer_timeout_ms == (60_000 if shared_id else None)
    assert hasattr(make_llm(), "_check_health") == shared_id
