"""From a checkpoint on disk to the layers that the forward pass multiplies with: fused, reordered, packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.engines.torch.checkpoint import Checkpoint
from tandem.engines.torch.kernels import Kernels, Norm
from tandem.engines.torch.linear import Linear, RowParallelLinear, make_linear
from tandem.engines.torch.rotary import interleave
from tandem.engines.torch.sharding import EMBEDDING, FINAL_NORM, HEAD, Shard
from tandem.parallel.collectives import Collectives


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block."""

    attention_norm: Norm
    qkv: Linear
    """hidden → for each KV head in turn: its query heads, its key, its value."""
    head_norm: Norm | None
    """Over the queries and the key of each KV head (Qwen3)."""
    attention_out: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class ModelWeights:
    """One rank's part of the model."""

    embedding: Tensor | None
    """[own part of the vocabulary, hidden]; in the first pipeline stage."""
    layers: list[LayerWeights]
    final_norm: Norm | None
    """In the last pipeline stage, as ``head``."""
    head: Linear | None
    """hidden → own part of the vocabulary."""


def load_weights(
    shard: Shard, checkpoint: Checkpoint, kernels: Kernels, ranks: Collectives, progress: Callable[[float], None]
) -> ModelWeights:
    """Read, fuse and pack the layers of one rank. ``progress`` takes the fraction done."""
    whole = shard.whole
    vocabulary = (whole.vocab_size, whole.hidden_size)
    embedding = checkpoint.read(EMBEDDING, vocabulary) if shard.holds(EMBEDDING) else None
    layers = []
    for i in shard.layers:
        layers.append(_LayerReader(shard, checkpoint, kernels, ranks, f"model.layers.{i}.").read())
        progress(len(layers) / len(shard.layers))
    if not shard.is_last_stage:
        return ModelWeights(embedding, layers, None, None)
    norm = kernels.norm(checkpoint.read(FINAL_NORM, (whole.hidden_size,)), whole.rms_eps)
    head = embedding if whole.tied_embeddings else checkpoint.read(HEAD, vocabulary)
    assert head is not None
    return ModelWeights(embedding, layers, norm, make_linear(head))


class _LayerReader:
    """Reads one transformer block; names are those of Hugging Face checkpoints, shapes those of the whole model."""

    def __init__(self, shard: Shard, checkpoint: Checkpoint, kernels: Kernels, ranks: Collectives, prefix: str) -> None:
        self._shard, self._checkpoint, self._kernels, self._ranks = shard, checkpoint, kernels, ranks
        self._whole, self._own, self._prefix = shard.whole, shard.config, prefix

    def read(self) -> LayerWeights:
        c = self._whole
        return LayerWeights(
            attention_norm=self._norm("input_layernorm"),
            qkv=self._qkv(),
            head_norm=self._head_norm(),
            attention_out=self._row_parallel("self_attn.o_proj", c.hidden_size, c.num_heads * c.head_dim),
            mlp_norm=self._norm("post_attention_layernorm"),
            gate_up=self._gate_up(),
            down=self._row_parallel("mlp.down_proj", c.hidden_size, c.intermediate_size),
        )

    def _norm(self, name: str) -> Norm:
        weight = self._checkpoint.read(f"{self._prefix}{name}.weight", (self._whole.hidden_size,))
        return self._kernels.norm(weight, self._whole.rms_eps)

    def _head_norm(self) -> Norm | None:
        """Queries and keys have one weight each; they are stacked, a row for every head of a group."""
        c = self._own
        names = [f"{self._prefix}self_attn.{x}_norm.weight" for x in "qk"]
        if names[0] not in self._checkpoint:
            return None
        q, k = (interleave(self._checkpoint.read(name, (c.head_dim,)), 1) for name in names)
        return self._kernels.norm(torch.cat([q.expand(c.group_size, -1), k.unsqueeze(0)]), c.rms_eps)

    def _qkv(self) -> Linear:
        whole, own = self._whole, self._own
        parts, biases = [], []
        for x, heads, kept in (
            ("q", whole.num_heads, own.num_heads),
            ("k", whole.num_kv_heads, own.num_kv_heads),
            ("v", whole.num_kv_heads, own.num_kv_heads),
        ):
            weight, bias = self._parts(f"self_attn.{x}_proj", heads * whole.head_dim, whole.hidden_size)
            parts.append(self._by_kv_head(weight, kept, x))
            if bias is not None:
                biases.append(self._by_kv_head(bias, kept, x))
        return make_linear(_join(parts), _join(biases) if biases else None)

    def _by_kv_head(self, rows: Tensor, heads: int, x: str) -> Tensor:
        """[kv_heads, heads of x per KV head * head_dim, ...], rotary pairs side by side."""
        paired = rows if x == "v" else interleave(rows, heads)
        return paired.reshape(self._own.num_kv_heads, -1, *rows.shape[1:])

    def _gate_up(self) -> Linear:
        c = self._whole
        pairs = [self._parts(f"mlp.{x}_proj", c.intermediate_size, c.hidden_size) for x in ("gate", "up")]
        biases = [bias for _, bias in pairs if bias is not None]
        return make_linear(torch.cat([weight for weight, _ in pairs]), torch.cat(biases) if biases else None)

    def _row_parallel(self, name: str, out: int, into: int) -> Linear:
        own = make_linear(*self._parts(name, out, into))
        if self._shard.partition.tensor_parallel_size == 1:
            return own
        return RowParallelLinear(own, self._ranks, adds_residual=self._shard.place == 0)

    def _parts(self, name: str, out: int, into: int) -> tuple[Tensor, Tensor | None]:
        """This rank's part of a projection's weight and of its bias."""
        weight = self._checkpoint.read(f"{self._prefix}{name}.weight", (out, into))
        return weight, self._checkpoint.read_bias(f"{self._prefix}{name}.bias", out)


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate KV head by KV head."""
    return torch.cat(parts, dim=1).flatten(0, 1)
