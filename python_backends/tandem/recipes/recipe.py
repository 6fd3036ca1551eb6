"""A recipe file: one model, and how each of its two stages is to be served by TensorRT-LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tandem.deployment import PositiveInt, Section, locate
from tandem.errors import TandemError
from tandem.messages import StageName
from tandem.recipes.checkpoint import read_quantization
from tandem.recipes.shape import Moe, Shape, read_shape

Form = Literal["llm_api", "engine"]
Quantization = Literal["none", "fp8", "fp8_block", "int8_weights", "int4_weights", "int4_awq", "nvfp4"]
KvDtype = Literal["auto", "fp8"]
GpuName = Literal["h100", "h200", "b200", "a100-80", "a100-40", "l40s"]
Fraction = Annotated[float, Meta(gt=0, lt=1)]

CONVERTERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen",
    "Qwen3ForCausalLM": "qwen",
    "Qwen3MoeForCausalLM": "qwen",
}
"""Architectures of which an engine can be built, and the folder of the converter in TensorRT-LLM's examples."""
CONVERTED: tuple[Quantization, ...] = ("none", "int8_weights", "int4_weights")
"""What the converter makes; all else of an engine is made by quantize.py."""
ENGINE_ONLY: tuple[Quantization, ...] = ("int8_weights", "int4_weights")
ENGINE_GPUS_PER_HOST = 8
"""Of ``Mapping`` in TensorRT-LLM; trtllm-build cannot change it any more."""
LLM_API_ONLY: tuple[Quantization, ...] = ("fp8_block",)


class StageRecipe(Section, frozen=True, kw_only=True):
    """One stage."""

    form: Form = "llm_api"
    """llm_api: the PyTorch backend loads the checkpoint itself. engine: a TensorRT engine is built (1.2 only)."""
    quantization: Quantization = "none"
    """Of the weights. llm_api: what the checkpoint is; engine: what is made of it."""
    kv_dtype: KvDtype = "auto"
    """auto: the model's dtype."""
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    expert_parallel_size: PositiveInt = 1
    """Of ``tensor_parallel_size`` ranks, how many groups hold other experts; each expert is split over the rest."""
    hosts: PositiveInt = 1
    """Over which the ranks are spread, in equal runs."""
    attention_data_parallel: bool = False
    """Each rank has attention whole, for requests of its own; for MLA, whose KV cannot be split by heads."""
    max_input_len: PositiveInt
    max_seq_len: PositiveInt
    """Most tokens of prompt and answer together."""
    max_batch_size: PositiveInt
    max_num_tokens: PositiveInt
    """Most tokens in one step, of all requests."""
    kv_fraction: Fraction = 0.9
    """Of the memory that weights and activations leave, what the KV cache takes."""

    @property
    def ranks(self) -> int:
        """GPUs of one worker."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Recipe(Section, frozen=True, kw_only=True):
    """A whole recipe."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    source: str
    """Where the figures in ``shape`` are from."""
    checkpoint: str
    """Directory of the Hugging Face checkpoint, where the recipe is built and served."""
    dtype: Literal["bfloat16"] = "bfloat16"
    gpu: GpuName
    gpus_per_host: PositiveInt = 8
    cache_transceiver: Literal["NIXL", "UCX"] = "NIXL"
    tokens_per_block: Literal[16, 32, 64, 128] = 32
    shape: Shape
    prefill: StageRecipe
    decode: StageRecipe

    def stage(self, name: StageName) -> StageRecipe:
        """The recipe of one stage."""
        return self.prefill if name == "prefill" else self.decode


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; the checkpoint's own shape takes the place of the recipe's where there is one.

    Raises:
        TandemError: ``invalid_request``, naming file, field, value and what was expected.
    """
    try:
        content = msgspec.toml.decode(path.read_bytes())
        recipe = msgspec.convert(content, Recipe)
    except OSError as error:
        raise TandemError("invalid_request", f"cannot read the recipe {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise TandemError("invalid_request", f"{path}: {locate(str(error), content)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error
    directory = Path(recipe.checkpoint)
    if (directory / "config.json").is_file():
        recipe = msgspec.structs.replace(recipe, shape=read_shape(directory))
        if problem := _find_mismatch(recipe, read_quantization(directory)):
            raise TandemError("invalid_request", f"{path}: {problem}")
    if problem := _find_problem(recipe):
        raise TandemError("invalid_request", f"{path}: {problem}")
    return recipe


def _find_mismatch(recipe: Recipe, found: str) -> str | None:
    """Which stage does not fit how the checkpoint is quantized: loaded as it is, or converted from 16 bits."""
    for name, stage in (("prefill", recipe.prefill), ("decode", recipe.decode)):
        expected = stage.quantization if stage.form == "llm_api" else "none"
        if found != expected:
            how = "it is loaded as it is" if stage.form == "llm_api" else "an engine is made of an unquantized one"
            return f"{name}.quantization: {stage.quantization!r}: the checkpoint's weights are {found!r}, and {how}"
    return None


def _find_problem(recipe: Recipe) -> str | None:
    """The rules that span fields: the first one that is broken, as ``field: value: what was expected``."""
    shape, prefill, decode = recipe.shape, recipe.prefill, recipe.decode
    stages: tuple[tuple[StageName, StageRecipe], ...] = (("prefill", prefill), ("decode", decode))
    for name, stage in stages:
        if problem := _find_split(shape, stage) or _find_lengths(shape, stage) or _find_form(shape, stage):
            return f"{name}.{problem}"
    if decode.kv_dtype != prefill.kv_dtype:
        ours, theirs = decode.kv_dtype, prefill.kv_dtype
        return f"decode.kv_dtype: {ours!r}: must be prefill's, {theirs!r}, or the KV cache cannot be handed over"
    if decode.max_seq_len != prefill.max_seq_len:
        longest = f"prefill's, {prefill.max_seq_len}: either worker may get a request whole"
        return f"decode.max_seq_len: {decode.max_seq_len}: must be {longest}"
    return None


def _find_split(shape: Shape, stage: StageRecipe) -> str | None:
    """What is wrong with how the model is split over ranks."""
    tensor, experts, moe = stage.tensor_parallel_size, stage.expert_parallel_size, shape.moe
    if shape.num_heads % tensor:
        return f"tensor_parallel_size: {tensor}: must divide the model's {shape.num_heads} attention heads"
    if shape.num_kv_heads % tensor and tensor % shape.num_kv_heads:
        return f"tensor_parallel_size: {tensor}: must divide the model's {shape.num_kv_heads} KV heads, or they it"
    if stage.ranks % stage.hosts:
        return f"hosts: {stage.hosts}: must divide the number of ranks, {stage.ranks}"
    if stage.pipeline_parallel_size > shape.num_layers:
        return f"pipeline_parallel_size: {stage.pipeline_parallel_size}: the model has {shape.num_layers} layers"
    if experts > 1 and moe is None:
        return f"expert_parallel_size: {experts}: the model has no experts; must be 1"
    if tensor % experts:
        return f"expert_parallel_size: {experts}: must divide tensor_parallel_size, {tensor}"
    return _find_experts(moe, experts, tensor) if moe else None


def _find_experts(moe: Moe, experts: int, tensor: int) -> str | None:
    if moe.num_experts % experts:
        return f"expert_parallel_size: {experts}: must divide the model's {moe.num_experts} experts"
    if moe.intermediate_size % (tensor // experts):
        return f"tensor_parallel_size: {tensor}: {moe.intermediate_size} columns of an expert cannot be split like this"
    return None


def _find_lengths(shape: Shape, stage: StageRecipe) -> str | None:
    if stage.max_seq_len > shape.context:
        return f"max_seq_len: {stage.max_seq_len}: the model's context is {shape.context}"
    if stage.max_input_len > stage.max_seq_len:
        return f"max_input_len: {stage.max_input_len}: must be at most max_seq_len, {stage.max_seq_len}"
    if stage.max_num_tokens < stage.max_batch_size:
        return (
            f"max_num_tokens: {stage.max_num_tokens}: a decode step has one token of each request, so at least "
            f"max_batch_size, {stage.max_batch_size}"
        )
    return None


def _find_form(shape: Shape, stage: StageRecipe) -> str | None:
    """What cannot be made, or loaded, in this form."""
    if stage.form == "llm_api":
        if stage.quantization in ENGINE_ONLY:
            return f'quantization: {stage.quantization!r}: needs form = "engine"; "llm_api" loads a checkpoint as it is'
        return None
    if shape.architecture not in CONVERTERS:
        return (
            f'form: "engine": TensorRT-LLM 1.2 builds none of {shape.architecture}; use "llm_api" '
            f"(it does of {', '.join(CONVERTERS)})"
        )
    if stage.quantization in LLM_API_ONLY:
        return f'quantization: {stage.quantization!r}: no engine can be built of it; use form = "llm_api"'
    if stage.hosts > 1 and stage.ranks // stage.hosts != ENGINE_GPUS_PER_HOST:
        return (
            f"hosts: {stage.hosts}: an engine expects {ENGINE_GPUS_PER_HOST} ranks on each of several hosts, not "
            f'{stage.ranks // stage.hosts}; use form = "llm_api"'
        )
    if stage.attention_data_parallel:
        return 'attention_data_parallel: true: needs form = "llm_api"'
    if stage.expert_parallel_size > 1 and stage.quantization not in CONVERTED:
        return (
            f"expert_parallel_size: {stage.expert_parallel_size}: quantize.py, which makes {stage.quantization}, "
            "splits experts by tensor parallelism alone; must be 1"
        )
    if stage.kv_dtype == "fp8" and stage.quantization in CONVERTED:
        return f"kv_dtype: 'fp8': quantize.py makes its scales; needs another quantization than {stage.quantization!r}"
    return None
