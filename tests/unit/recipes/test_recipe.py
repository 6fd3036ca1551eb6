"""Recipes are read whole, or refused with the field, its value and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem.errors import TandemError
from tandem.recipes.checkpoint import read_quantization
from tandem.recipes.recipe import Recipe, load_recipe
from tandem.recipes.shape import read_shape

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "build/recipes").glob("*.toml"))
LLAMA = ROOT / "build/recipes/llama-3.3-70b.toml"
MIXTRAL = ROOT / "build/recipes/mixtral-8x7b.toml"
DEEPSEEK = ROOT / "build/recipes/deepseek-r1.toml"
PUBLISHED = {"llama-3.1-8b": 8.03, "llama-3.3-70b": 70.6, "qwen3-32b": 32.8, "mixtral-8x7b": 46.7, "deepseek-r1": 671.0}
"""Billions of parameters, as on the models' pages."""


def change(directory: Path, recipe: Path, stage: str, **fields: str) -> Path:
    """A recipe with some fields of a stage replaced, given as TOML."""
    head, _, rest = recipe.read_text().partition(f"[{stage}]\n")
    body, bracket, tail = rest.partition("\n[")
    lines = [line for line in body.splitlines() if line.split(" ")[0] not in fields]
    lines += [f"{name} = {value}" for name, value in fields.items()]
    path = directory / recipe.name
    path.write_text(f"{head}[{stage}]\n" + "\n".join(lines) + bracket + tail)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TandemError) as caught:
        load_recipe(path)
    assert caught.value.code == "invalid_request"
    start = f"{path}: "
    assert caught.value.message.startswith(start)
    return caught.value.message.removeprefix(start)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_figures_add_up_to_the_published_number_of_parameters(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.shape.parameters / 1e9 == pytest.approx(PUBLISHED[recipe.name], rel=2e-3)


def test_every_recipe_is_there() -> None:
    assert [path.stem for path in RECIPES] == sorted(PUBLISHED)


@pytest.mark.parametrize(
    ("recipe", "stage", "fields", "said"),
    [
        (LLAMA, "decode", {"max_batch_size": "0"}, "decode.max_batch_size: 0: Expected `int` >= 1"),
        (LLAMA, "decode", {"max_batchsize": "4"}, "unknown field `max_batchsize`"),
        (LLAMA, "prefill", {"kv_fraction": "1.5"}, "prefill.kv_fraction: 1.5: Expected `float` < 1"),
        (LLAMA, "prefill", {"quantization": '"fp4"'}, "prefill.quantization: 'fp4': Invalid enum value"),
        (
            LLAMA,
            "prefill",
            {"tensor_parallel_size": "3"},
            "prefill.tensor_parallel_size: 3: must divide",
        ),
        (LLAMA, "decode", {"hosts": "3"}, "decode.hosts: 3: must divide the number of ranks, 8"),
        (LLAMA, "decode", {"pipeline_parallel_size": "96"}, "decode.pipeline_parallel_size: 96: the model has 80"),
        (LLAMA, "decode", {"expert_parallel_size": "2"}, "decode.expert_parallel_size: 2: the model has no experts"),
        (LLAMA, "decode", {"kv_dtype": '"fp8"'}, "decode.kv_dtype: 'fp8': must be prefill's, 'auto'"),
        (LLAMA, "decode", {"max_seq_len": "36864"}, "decode.max_seq_len: 36864: must be prefill's, 40960"),
        (LLAMA, "decode", {"max_seq_len": "999999"}, "decode.max_seq_len: 999999: the model's context is 131072"),
        (LLAMA, "decode", {"max_input_len": "50000"}, "decode.max_input_len: 50000: must be at most max_seq_len"),
        (LLAMA, "decode", {"max_num_tokens": "64"}, "decode.max_num_tokens: 64: a decode step has one token of each"),
        (LLAMA, "prefill", {"quantization": '"int8_weights"'}, "prefill.quantization: 'int8_weights': needs form"),
        (LLAMA, "decode", {"form": '"engine"'}, "decode.hosts: 2: an engine expects 8 ranks on each"),
        (MIXTRAL, "decode", {"expert_parallel_size": "2"}, "decode.expert_parallel_size: 2: quantize.py, which makes"),
        (MIXTRAL, "decode", {"quantization": '"none"'}, "decode.kv_dtype: 'fp8': quantize.py makes its scales"),
        (
            DEEPSEEK,
            "decode",
            {"form": '"engine"'},
            'decode.form: "engine": TensorRT-LLM 1.2 builds none of Deepseek',
        ),
        (DEEPSEEK, "decode", {"expert_parallel_size": "3"}, "decode.expert_parallel_size: 3: must divide"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, recipe: Path, stage: str, fields: dict[str, str], said: str) -> None:
    assert said in refusal(change(tmp_path, recipe, stage, **fields))


@pytest.mark.parametrize(
    ("text", "said"), [("name = ", "TOML"), ("name = 1", "name: 1: Expected `str`"), ('name = "x"', "missing required")]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(TandemError) as caught:
        load_recipe(path)
    assert str(path) in caught.value.message
    if said != "TOML":
        assert said in caught.value.message


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match=r"cannot read the recipe .*nowhere\.toml: No such file"):
        load_recipe(tmp_path / "nowhere.toml")


DEEPSEEK_CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "head_dim": 128,
}
MIXTRAL_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("recipe", "config"), [(DEEPSEEK, DEEPSEEK_CONFIG), (MIXTRAL, MIXTRAL_CONFIG)])
def test_a_config_json_says_what_the_recipe_carries(tmp_path: Path, recipe: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path) == load_recipe(recipe).shape


def test_the_checkpoints_own_shape_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL_CONFIG | {"num_hidden_layers": 16}))
    path = tmp_path / "r.toml"
    path.write_text(MIXTRAL.read_text().replace("/models/Mixtral-8x7B-Instruct-v0.1", str(tmp_path)))
    recipe: Recipe = load_recipe(path)
    assert recipe.shape.num_layers == 16


def test_a_config_json_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MIXTRAL_CONFIG, "hidden_size": None}))
    with pytest.raises(TandemError, match=r"config\.json"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("config", "optimizer", "found"),
    [
        ({}, None, "none"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, None, "fp8_block"),
        ({"quant_method": "awq", "bits": 4}, None, "int4_awq"),
        ({"quant_method": "gptq"}, None, "gptq"),
        ({}, "FP8", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None, "nvfp4"),
    ],
)
def test_a_checkpoint_says_how_it_is_quantized(
    tmp_path: Path, config: dict[str, object], optimizer: str | None, found: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL_CONFIG | {"quantization_config": config}))
    if optimizer:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": optimizer}}))
    assert read_quantization(tmp_path) == found


def test_a_recipe_that_takes_a_checkpoint_for_another_is_refused(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL_CONFIG | quantized))
    path = tmp_path / "r.toml"
    path.write_text(MIXTRAL.read_text().replace("/models/Mixtral-8x7B-Instruct-v0.1", str(tmp_path)))
    said = "prefill.quantization: 'fp8': the checkpoint's weights are 'fp8_block', and an engine is made of an unquant"
    assert refusal(path).startswith(said)
