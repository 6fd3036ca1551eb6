"""How much memory one rank of a stage takes, and how many tokens of KV cache it then has room for.

Weights and KV per token follow from the shape, and are exact but for the norms. Activations and what the runtime
itself holds are estimates, by the assumptions below; TensorRT-LLM measures them when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tandem.errors import TandemError
from tandem.recipes.gpus import GPUS, Gpu
from tandem.recipes.recipe import GpuName, Quantization, Recipe, StageRecipe
from tandem.recipes.shape import Moe, Shape

WEIGHT_BYTES: dict[Quantization, float] = {
    "none": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / (128 * 128),
    "int8_weights": 1.0,
    "int4_weights": 0.5,
    "int4_awq": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,
}
"""Of one weight of a linear layer, its scales included; embedding, output projection and router stay at 16 bits."""
ELEMENT_BYTES = 2
RUNTIME_BYTES = 3 * 10**9
"""CUDA context, libraries, NCCL, CUDA graphs, all-reduce buffers: assumed."""
EXPERT_IMBALANCE = 2.0
"""Tokens on the busiest rank, in shares of an even spread over the ranks that hold different experts: assumed."""
LOGITS_BYTES = 4
MOST_RANKS = 32


@dataclass(frozen=True)
class Estimate:
    """Of the fullest rank of one worker, in bytes."""

    weights: int
    activations: int
    kv_per_token: int
    """On this rank."""
    kv_pool: int
    pool_shares: int
    """Ranks that each hold the KV of other requests."""
    max_seq_len: int
    max_batch_size: int

    @property
    def tokens(self) -> int:
        """KV tokens that a worker has room for."""
        return self.pool_shares * (self.kv_pool // self.kv_per_token)

    @property
    def sequences(self) -> float:
        """Sequences of full length in them."""
        return self.tokens / self.max_seq_len

    @property
    def fits(self) -> bool:
        """Whether at least one sequence of full length does, on one rank."""
        return self.kv_pool // self.kv_per_token >= self.max_seq_len


def estimate(recipe: Recipe, stage: StageRecipe, gpu: Gpu) -> Estimate:
    """The fullest rank's memory, were ``stage`` run on ``gpu``."""
    weights, activations = _weights(recipe.shape, stage), _activations(recipe.shape, stage)
    left = gpu.memory_bytes - RUNTIME_BYTES - weights - activations
    return Estimate(
        weights=weights,
        activations=activations,
        kv_per_token=kv_per_token(recipe.shape, stage),
        kv_pool=max(0, int(left * stage.kv_fraction)),
        pool_shares=stage.tensor_parallel_size if stage.attention_data_parallel else 1,
        max_seq_len=stage.max_seq_len,
        max_batch_size=stage.max_batch_size,
    )


def check_fit(recipe: Recipe, field: str, stage: StageRecipe) -> None:
    """Refuse what cannot run on the recipe's GPU.

    Raises:
        TandemError: ``invalid_request``, naming the field, what is missing, and what would fit.
    """
    gpu = GPUS[recipe.gpu]
    if stage.quantization not in gpu.quantizations:
        able = ", ".join(name for name, other in GPUS.items() if stage.quantization in other.quantizations)
        raise TandemError(
            "invalid_request",
            f"{field}.quantization: {stage.quantization!r}: {gpu.title} cannot compute with it; gpu can be {able}",
        )
    found = estimate(recipe, stage, gpu)
    if found.fits:
        return
    raise TandemError(
        "invalid_request",
        f"{field}: {stage.ranks} x {gpu.title}: each rank needs {gigabytes(found.weights)} for weights and about "
        f"{gigabytes(found.activations + RUNTIME_BYTES)} for activations and runtime, which leaves "
        f"{gigabytes(found.kv_pool)} of KV cache; a sequence of max_seq_len, {stage.max_seq_len} tokens, takes "
        f"{gigabytes(found.kv_per_token * stage.max_seq_len)}. {_what_would(recipe, stage)}",
    )


def _what_would(recipe: Recipe, stage: StageRecipe) -> str:
    """What to change so that it fits."""
    ways = []
    sizes = [2**n for n in range(1, 6) if stage.tensor_parallel_size < 2**n <= MOST_RANKS]
    for size in (n for n in sizes if recipe.shape.num_heads % n == 0):
        experts = size if stage.expert_parallel_size == stage.tensor_parallel_size else stage.expert_parallel_size
        wider = msgspec.structs.replace(stage, tensor_parallel_size=size, expert_parallel_size=experts)
        if estimate(recipe, wider, GPUS[recipe.gpu]).fits:
            ways.append(f"tensor_parallel_size = {size}")
            break
    names = [name for name in GPUS if _fits_on(recipe, stage, name)]
    if names:
        ways.append(f"gpu = {' or '.join(repr(name) for name in names)}")
    for shorter in (stage.max_seq_len // 2, stage.max_seq_len // 4, stage.max_seq_len // 8):
        if shorter and estimate(recipe, msgspec.structs.replace(stage, max_seq_len=shorter), GPUS[recipe.gpu]).fits:
            ways.append(f"max_seq_len = {shorter}")
            break
    return f"What would fit: {'; or '.join(ways)}" if ways else "Nothing that a recipe can say would fit"


def _fits_on(recipe: Recipe, stage: StageRecipe, name: GpuName) -> bool:
    gpu = GPUS[name]
    return stage.quantization in gpu.quantizations and estimate(recipe, stage, gpu).fits


def kv_per_token(shape: Shape, stage: StageRecipe) -> int:
    """Bytes that one token takes on one rank. KV heads are copied where there are more ranks than heads; what MLA keeps
    cannot be split by heads at all."""
    element = 1 if stage.kv_dtype == "fp8" else ELEMENT_BYTES
    layers = -(-shape.num_layers // stage.pipeline_parallel_size)
    if shape.mla is not None:
        return layers * (shape.mla.kv_lora_rank + shape.mla.qk_rope_head_dim) * element
    ranks = 1 if stage.attention_data_parallel else stage.tensor_parallel_size
    return 2 * layers * max(1, shape.num_kv_heads // ranks) * shape.head_dim * element


def _weights(shape: Shape, stage: StageRecipe) -> int:
    """Of a rank with as many layers as any, and an embedding. Where attention is whole on each rank, so is all that is
    no routed expert: every rank reads its own tokens there."""
    tensor = stage.tensor_parallel_size
    ranks = 1 if stage.attention_data_parallel else tensor
    layers = -(-shape.num_layers // stage.pipeline_parallel_size)
    by_heads, by_kv_heads, whole = shape.attention_parameters
    copies = max(1, ranks // shape.num_kv_heads)
    linear = layers * (by_heads / ranks + by_kv_heads * copies / ranks + whole)
    router = 0
    if (moe := shape.moe) is None:
        linear += layers * shape.dense_mlp_parameters / ranks
    else:
        dense = min(layers, moe.dense_layers)
        expert = 3 * shape.hidden_size * moe.intermediate_size
        linear += dense * shape.dense_mlp_parameters / ranks
        linear += (layers - dense) * expert * (moe.num_experts / tensor + moe.shared_experts / ranks)
        router = (layers - dense) * shape.hidden_size * moe.num_experts
    return int(linear * WEIGHT_BYTES[stage.quantization] + (_embeddings(shape, stage) + router) * ELEMENT_BYTES)


def _embeddings(shape: Shape, stage: StageRecipe) -> float:
    """Embedding and output projection lie on the first and on the last pipeline stage. An engine's embedding is whole
    on every rank, as convert_checkpoint.py has it by default; the output projection is always split."""
    ranks = 1 if stage.attention_data_parallel else stage.tensor_parallel_size
    one = shape.embedding_parameters
    first = one if stage.form == "engine" else one / ranks
    last = one / ranks
    if stage.pipeline_parallel_size > 1:
        return max(first, last)
    return first if shape.tied_embeddings and stage.form != "engine" else first + last


def _activations(shape: Shape, stage: StageRecipe) -> int:
    """What one layer holds at once for a step's tokens, and the logits of its requests: an estimate."""
    tensor = stage.tensor_parallel_size
    ranks = 1 if stage.attention_data_parallel else tensor
    attention = (shape.num_heads + 2 * max(1, shape.num_kv_heads // ranks) * ranks) * shape.head_dim / ranks
    mlp = 3 * shape.intermediate_size / tensor
    if (moe := shape.moe) is not None:
        mlp = max(mlp, _expert_activations(shape, moe, stage))
    per_token = (4 * shape.hidden_size + max(attention, mlp)) * ELEMENT_BYTES
    logits = 2 * stage.max_batch_size * shape.vocab_size * LOGITS_BYTES
    return int(stage.max_num_tokens * per_token) + logits


def _expert_activations(shape: Shape, moe: Moe, stage: StageRecipe) -> float:
    """Numbers for each token of a step on the busiest rank: its copies for the experts, and what they make of them."""
    within = stage.tensor_parallel_size // stage.expert_parallel_size
    here = min(1.0, EXPERT_IMBALANCE / stage.expert_parallel_size)
    return here * moe.experts_per_token * (2 * shape.hidden_size + 3 * moe.intermediate_size / within)


def gigabytes(number: float) -> str:
    """As GPU memory is sold: ``1.5 GB``."""
    return f"{number / 1e9:,.1f} GB"
