"""The commands that make a TensorRT engine of a stage: convert or quantize the checkpoint, then ``trtllm-build``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tandem.errors import TandemError
from tandem.recipes.flags import Tool
from tandem.recipes.recipe import CONVERTED, CONVERTERS, Quantization, Recipe, StageRecipe

EXAMPLES = Path("/app/examples")
"""TensorRT-LLM's examples, which convert checkpoints; TANDEM_TRTLLM_EXAMPLES says where else they are."""
VERSION = "1.2.1"
"""Of TensorRT-LLM. An engine is of use to the very version that built it."""
CALIBRATION_SIZE = 512
_QFORMATS: dict[Quantization, str] = {"fp8": "fp8", "int4_awq": "int4_awq", "nvfp4": "nvfp4"}
_PRECISIONS: dict[Quantization, str] = {"int8_weights": "int8", "int4_weights": "int4"}
_KEY_LENGTH = 12


@dataclass(frozen=True)
class Step:
    """One command. Its output appears whole or not at all, and is not made again while what went in is the same."""

    title: str
    tool: Tool
    command: list[str]
    output: Path


def plan_engine(recipe: Recipe, stage_name: str, out: Path, examples: Path = EXAMPLES) -> list[Step]:
    """The steps to a stage's engine, under ``out``, in their order. Stages that need the same converted checkpoint have
    it in common.

    Raises:
        TandemError: ``invalid_request``: the checkpoint cannot be read.
    """
    stage = recipe.prefill if stage_name == "prefill" else recipe.decode
    origin = fingerprint(Path(recipe.checkpoint))
    tool, program, options = _checkpoint_command(recipe, stage, examples)
    checkpoint = out / f"checkpoint-{_key(VERSION, origin, *program, *options)}"
    command = [*program, *options, "--output_dir", str(checkpoint)]
    title = "quantize" if tool == "quantize" else "convert"
    convert = Step(f"{stage_name}: {title} {Path(recipe.checkpoint).name}", tool, command, checkpoint)
    options = _build_options(recipe, stage)
    engine = out / f"{stage_name}-{_key(checkpoint.name, *options)}"
    command = ["trtllm-build", "--checkpoint_dir", str(checkpoint), "--output_dir", str(engine), *options]
    if (workers := _workers(recipe, stage)) > 1:
        command = ["mpirun", "-n", str(workers), *command]
    return [convert, Step(f"{stage_name}: build the engine", "trtllm-build", command, engine)]


def fingerprint(checkpoint: Path) -> str:
    """Names, sizes and times of a checkpoint's files; its path where there is none, as in a dry run elsewhere.

    Raises:
        TandemError: ``invalid_request``: it cannot be read.
    """
    try:
        files = sorted(path for path in checkpoint.iterdir() if path.is_file()) if checkpoint.is_dir() else []
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise TandemError("invalid_request", f"checkpoint: {checkpoint} cannot be read: {error.strerror}") from error
    return _key(str(checkpoint), *(str(fact) for fact in facts))


def _checkpoint_command(recipe: Recipe, stage: StageRecipe, examples: Path) -> tuple[Tool, list[str], list[str]]:
    """Tool, program and options that make TensorRT-LLM's own form of the checkpoint."""
    split = ["--tp_size", str(stage.tensor_parallel_size), "--pp_size", str(stage.pipeline_parallel_size)]
    options = ["--model_dir", recipe.checkpoint, "--dtype", recipe.dtype, *split]
    if stage.quantization not in CONVERTED:
        options += ["--qformat", _QFORMATS[stage.quantization], "--calib_size", str(CALIBRATION_SIZE)]
        if stage.kv_dtype != "auto":
            options += ["--kv_cache_dtype", stage.kv_dtype]
        return "quantize", ["python3", str(examples / "quantization" / "quantize.py")], options
    family: Tool = "llama" if CONVERTERS[recipe.shape.architecture] == "llama" else "qwen"
    if recipe.shape.moe is not None:
        within = stage.tensor_parallel_size // stage.expert_parallel_size
        options += ["--moe_tp_size", str(within), "--moe_ep_size", str(stage.expert_parallel_size)]
    if stage.quantization in _PRECISIONS:
        options += ["--use_weight_only", "--weight_only_precision", _PRECISIONS[stage.quantization]]
    options += ["--workers", str(_workers(recipe, stage))]
    return family, ["python3", str(examples / "models" / "core" / family / "convert_checkpoint.py")], options


def _build_options(recipe: Recipe, stage: StageRecipe) -> list[str]:
    """Options of trtllm-build beside its directories. A hand-over needs a paged KV cache without beams; reuse of cached
    blocks and reading in chunks need the attention kernel for paged context."""
    is_plain = stage.quantization in CONVERTED
    options = {
        "--max_batch_size": stage.max_batch_size,
        "--max_input_len": stage.max_input_len,
        "--max_seq_len": stage.max_seq_len,
        "--max_num_tokens": stage.max_num_tokens,
        "--max_beam_width": 1,
        "--kv_cache_type": "paged",
        "--tokens_per_block": recipe.tokens_per_block,
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "enable",
        "--use_fp8_context_fmha": "enable" if stage.quantization == "fp8" and stage.kv_dtype == "fp8" else "disable",
        "--gpt_attention_plugin": "auto",
        "--gemm_plugin": "auto" if is_plain else "disable",  # of quantized products TensorRT's own are the faster
        "--log_level": "info",
    }
    workers = _workers(recipe, stage)
    if workers == 1:
        options["--workers"] = 1
    return [word for name, value in options.items() for word in (name, str(value))]


def _workers(recipe: Recipe, stage: StageRecipe) -> int:
    """Processes that build at once, each on a GPU of this host."""
    return min(stage.ranks, recipe.gpus_per_host)


def _key(*parts: str) -> str:
    """A short name for all that goes into something."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_KEY_LENGTH]
