"""Estimates against figures worked out by hand, and refusals that say what would fit."""

from __future__ import annotations

import msgspec
import pytest

from tandem.errors import TandemError
from tandem.messages import StageName
from tandem.recipes.gpus import GPUS
from tandem.recipes.memory import check_fit, estimate, kv_per_token
from tandem.recipes.recipe import Recipe
from tests.unit.recipes.support import NAMES, recipe


def kv(found: Recipe, stage: StageName) -> int:
    return kv_per_token(found.shape, found.stage(stage))


def refusal(found: Recipe, stage: StageName) -> str:
    with pytest.raises(TandemError) as caught:
        check_fit(found, stage, found.stage(stage))
    assert caught.value.code == "invalid_request"
    return caught.value.message


def test_kv_of_a_token_on_a_rank() -> None:
    assert kv(recipe("llama-3.1-8b"), "decode") == 2 * 32 * 8 * 128 * 2  # keys, values; layers; heads; size; bf16
    assert kv(recipe("llama-3.3-70b"), "prefill") == 2 * 80 * 2 * 128 * 2  # two of eight KV heads
    assert kv(recipe("llama-3.3-70b", "decode", tensor_parallel_size=16), "decode") == 2 * 80 * 1 * 128 * 2  # copies
    assert kv(recipe("llama-3.3-70b", "decode", pipeline_parallel_size=2), "decode") == 2 * 40 * 1 * 128 * 2
    assert kv(recipe("mixtral-8x7b"), "decode") == 2 * 32 * 4 * 128 * 1  # fp8
    assert kv(recipe("deepseek-r1"), "prefill") == 61 * (512 + 64) * 2  # MLA: whole on every rank


def test_data_parallel_attention_holds_other_requests_on_each_rank() -> None:
    found = recipe("deepseek-r1")
    gpu = GPUS["h200"]
    split, whole = estimate(found, found.prefill, gpu), estimate(found, found.decode, gpu)
    assert whole.tokens == 8 * (whole.kv_pool // whole.kv_per_token)
    assert split.tokens == split.kv_pool // split.kv_per_token
    attention = 61 * (11.0e6 + 37.7e6 + 4.1e6 + 16.8e6 + 117.4e6)  # q down and up, KV down and up, output
    split_by_heads = 61 * (37.7e6 + 16.8e6 + 117.4e6) / 8
    rest = whole.weights - split.weights
    assert rest > 0.9 * (attention - split_by_heads - 61 * 15.1e6)


@pytest.mark.parametrize(
    ("name", "ranks", "gigabytes"),
    [("llama-3.1-8b", 1, 16.06), ("llama-3.3-70b", 4, 35.3), ("qwen3-32b", 2, 32.8)],
)
def test_weights_are_shared_out(name: str, ranks: int, gigabytes: float) -> None:
    found = recipe(name)
    assert found.prefill.ranks == ranks
    weights = estimate(found, found.prefill, GPUS["h100"]).weights
    assert weights / 1e9 == pytest.approx(gigabytes, rel=5e-3)
    assert weights * ranks == pytest.approx(2 * found.shape.parameters, rel=1e-3)


def test_experts_over_ranks_are_as_heavy_as_experts_split_over_them() -> None:
    by_rows, by_expert = (
        recipe("mixtral-8x7b", "decode", form="llm_api", expert_parallel_size=size) for size in (1, 2)
    )
    gpu = GPUS["h100"]
    assert estimate(by_rows, by_rows.decode, gpu).weights == estimate(by_expert, by_expert.decode, gpu).weights


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_fits(name: str) -> None:
    found = recipe(name)
    check_fit(found, "prefill", found.prefill)
    check_fit(found, "decode", found.decode)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    message = refusal(recipe("llama-3.3-70b", "prefill", tensor_parallel_size=1), "prefill")
    assert message.startswith("prefill: 1 x H100 80 GB: each rank needs 141.1 GB for weights")
    assert "leaves 0.0 GB of KV cache" in message
    assert message.endswith("What would fit: tensor_parallel_size = 4; or gpu = 'b200'")
    wide = msgspec.structs.replace(recipe("llama-3.3-70b").prefill, tensor_parallel_size=4)
    check_fit(recipe("llama-3.3-70b"), "prefill", wide)


def test_less_context_may_be_enough() -> None:
    long = recipe("qwen3-32b", "decode", quantization="int8_weights", form="engine", tensor_parallel_size=1)
    message = refusal(msgspec.structs.replace(long, gpu="l40s"), "decode")
    assert "tensor_parallel_size = 2" in message
    assert "'h100'" in message
    assert "max_seq_len = 20480" in message


def test_nothing_may_fit() -> None:
    message = refusal(recipe("deepseek-r1", "prefill", tensor_parallel_size=1, expert_parallel_size=1), "prefill")
    assert "tensor_parallel_size = 8" in message
    assert "Nothing" in refusal(recipe("deepseek-r1", "prefill", max_seq_len=10**9, max_input_len=10), "prefill")


@pytest.mark.parametrize(
    ("name", "gpu", "said"),
    [
        ("mixtral-8x7b", "a100-80", "decode.quantization: 'fp8': A100 80 GB cannot compute with it; gpu can be h100"),
        ("deepseek-r1", "l40s", "decode.quantization: 'fp8_block': L40S 48 GB cannot compute with it; gpu can be h100"),
    ],
)
def test_a_gpu_without_the_arithmetic_is_refused(name: str, gpu: str, said: str) -> None:
    assert refusal(recipe(name, gpu=gpu), "decode").startswith(said)
