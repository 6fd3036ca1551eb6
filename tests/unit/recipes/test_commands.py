"""What a build calls: options that the tools have, values that they take, and names by what goes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.recipes.commands import Step, plan_engine
from tandem.recipes.flags import FLAGS, flags_of
from tandem.recipes.recipe import Recipe
from tests.unit.recipes.support import recipe

OUT = Path("/engines")
ON_OFF = {"enable", "disable"}
CHOICES = {
    "--dtype": {"auto", "float16", "bfloat16", "float32"},
    "--qformat": {"nvfp4", "fp8", "fp8_pc_pt", "int8_sq", "int4_awq", "w4a8_awq", "int8_wo", "int4_wo", "full_prec"},
    "--kv_cache_dtype": {"int8", "fp8"},
    "--weight_only_precision": {"int8", "int4"},
    "--kv_cache_type": {"continuous", "paged", "disabled"},
    "--gemm_plugin": {"auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"},
    "--gpt_attention_plugin": {"auto", "float16", "float32", "bfloat16", "int32", "disable"},
    "--remove_input_padding": ON_OFF,
    "--context_fmha": ON_OFF,
    "--use_paged_context_fmha": ON_OFF,
    "--use_fp8_context_fmha": ON_OFF,
    "--log_level": {"internal_error", "error", "warning", "info", "verbose", "debug", "trace"},
}
"""Of the tools' own parsers."""
VARIANTS = {
    "bf16": recipe("llama-3.1-8b"),
    "bf16-tp4": recipe("llama-3.1-8b", "decode", tensor_parallel_size=4),
    "int8": recipe("llama-3.1-8b", "decode", quantization="int8_weights"),
    "int4": recipe("qwen3-32b", "decode", form="engine", quantization="int4_weights"),
    "awq": recipe("qwen3-32b", "decode", form="engine", quantization="int4_awq"),
    "fp8": recipe("mixtral-8x7b"),
    "experts": recipe("mixtral-8x7b", "decode", quantization="none", kv_dtype="auto", expert_parallel_size=2),
}


def steps(found: Recipe, stage: str = "decode", out: Path = OUT) -> list[Step]:
    return plan_engine(found, stage, out)


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_was_read_in_the_source(variant: str) -> None:
    for step in steps(VARIANTS[variant]):
        flags = flags_of(step.command)
        assert flags
        assert set(flags) <= set(FLAGS[step.tool])
        assert len(flags) == len(set(flags))
        for flag in set(flags) & set(CHOICES):
            assert value(step.command, flag) in CHOICES[flag]


def test_a_16_bit_engine_is_converted_and_built() -> None:
    convert, build = steps(recipe("llama-3.1-8b"))
    assert convert.command[:2] == ["python3", "/app/examples/models/core/llama/convert_checkpoint.py"]
    assert value(convert.command, "--output_dir") == value(build.command, "--checkpoint_dir") == str(convert.output)
    assert build.command[0] == "trtllm-build"
    assert value(build.command, "--gemm_plugin") == "auto"


def test_an_fp8_engine_is_quantized_with_its_kv_cache() -> None:
    quantize, build = steps(VARIANTS["fp8"])
    assert quantize.command[:2] == ["python3", "/app/examples/quantization/quantize.py"]
    assert value(quantize.command, "--qformat") == value(quantize.command, "--kv_cache_dtype") == "fp8"
    assert value(build.command, "--use_fp8_context_fmha") == "enable"
    assert value(build.command, "--gemm_plugin") == "disable"


def test_ranks_are_built_side_by_side_under_mpi() -> None:
    _, build = steps(VARIANTS["bf16-tp4"])
    assert build.command[:4] == ["mpirun", "-n", "4", "trtllm-build"]
    assert "--workers" not in build.command


def test_experts_are_placed_when_the_checkpoint_is_converted() -> None:
    convert, _ = steps(VARIANTS["experts"])
    assert (value(convert.command, "--moe_tp_size"), value(convert.command, "--moe_ep_size")) == ("1", "2")


def test_stages_share_a_checkpoint_that_both_need() -> None:
    found = recipe("llama-3.1-8b")
    assert steps(found, "prefill")[0].output == steps(found)[0].output
    assert steps(found, "prefill")[1].output != steps(found)[1].output


def test_names_change_with_what_goes_in(tmp_path: Path) -> None:
    found = recipe("llama-3.1-8b", checkpoint=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = [step.output for step in steps(found)]
    assert [step.output for step in steps(found)] == first
    longer = recipe("llama-3.1-8b", "decode", max_batch_size=64)
    assert steps(longer)[0].output == steps(recipe("llama-3.1-8b"))[0].output
    assert steps(longer)[1].output != steps(recipe("llama-3.1-8b"))[1].output
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert not set(first) & {step.output for step in steps(found)}
