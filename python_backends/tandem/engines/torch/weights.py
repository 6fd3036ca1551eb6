"""From a checkpoint on disk to the layers that the forward pass multiplies with: fused, reordered, packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kernels import Kernels, Norm
from tandem.engines.torch.linear import Linear, make_linear
from tandem.engines.torch.rotary import interleave
from tandem.errors import TandemError


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
    """The whole model."""

    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Norm
    head: Linear


class Checkpoint:
    """The tensors of a checkpoint by name, memory-mapped, cast on reading."""

    def __init__(self, model_dir: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._files: dict[str, Any] = {}
        paths = sorted(model_dir.glob("*.safetensors"))
        if not paths:
            raise TandemError("invalid_request", f"model.path: no *.safetensors file in {model_dir}")
        for path in paths:
            self._open(path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor in the engine's dtype and on its device.

        Raises:
            TandemError: ``invalid_request``: it is missing, or has another shape than config.json says.
        """
        if name not in self._files:
            raise TandemError("invalid_request", f"the checkpoint lacks the tensor {name}")
        tensor: Tensor = self._files[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise TandemError(
                "invalid_request", f"tensor {name} has shape {list(tensor.shape)}; config.json asks for {list(shape)}"
            )
        return tensor.to(self._device, self._dtype)

    def read_bias(self, name: str, size: int) -> Tensor | None:
        """A bias, or None where the checkpoint has none of this name."""
        return self.read(name, (size,)) if name in self else None

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise TandemError("invalid_request", f"cannot read {path}: {error}") from error


def read_fingerprint(model_dir: Path) -> str:
    """The hash over configuration and weights that ``build/`` wrote beside the checkpoint.

    Raises:
        TandemError: ``invalid_request``; says which command writes it.
    """
    path = model_dir / "tandem.json"
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError) as error:
        raise TandemError(
            "invalid_request",
            f"cannot read the field fingerprint of {path}: {error}; `python build/convert.py SOURCE OUT` writes it",
        ) from error


def load_weights(
    config: ModelConfig, checkpoint: Checkpoint, kernels: Kernels, progress: Callable[[float], None]
) -> ModelWeights:
    """Read, fuse and pack all layers. ``progress`` takes the fraction done."""
    embedding = checkpoint.read("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    layers = []
    for i in range(config.num_layers):
        layers.append(_LayerReader(config, checkpoint, kernels, f"model.layers.{i}.").read())
        progress((i + 1) / config.num_layers)
    head = embedding
    if not config.tied_embeddings:
        head = checkpoint.read("lm_head.weight", (config.vocab_size, config.hidden_size))
    norm = checkpoint.read("model.norm.weight", (config.hidden_size,))
    return ModelWeights(
        embedding=embedding,
        layers=layers,
        final_norm=kernels.norm(norm, config.rms_eps),
        head=make_linear(head),
    )


class _LayerReader:
    """Reads one transformer block; names are those of Hugging Face checkpoints."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, kernels: Kernels, prefix: str) -> None:
        self._config, self._checkpoint, self._kernels, self._prefix = config, checkpoint, kernels, prefix

    def read(self) -> LayerWeights:
        c = self._config
        return LayerWeights(
            attention_norm=self._norm("input_layernorm"),
            qkv=self._qkv(),
            head_norm=self._head_norm(),
            attention_out=self._linear("self_attn.o_proj", c.hidden_size, c.num_heads * c.head_dim),
            mlp_norm=self._norm("post_attention_layernorm"),
            gate_up=self._gate_up(),
            down=self._linear("mlp.down_proj", c.hidden_size, c.intermediate_size),
        )

    def _norm(self, name: str) -> Norm:
        weight = self._checkpoint.read(f"{self._prefix}{name}.weight", (self._config.hidden_size,))
        return self._kernels.norm(weight, self._config.rms_eps)

    def _head_norm(self) -> Norm | None:
        """Queries and keys have one weight each; they are stacked, a row for every head of a group."""
        c = self._config
        names = [f"{self._prefix}self_attn.{x}_norm.weight" for x in "qk"]
        if names[0] not in self._checkpoint:
            return None
        q, k = (interleave(self._checkpoint.read(name, (c.head_dim,)), 1) for name in names)
        return self._kernels.norm(torch.cat([q.expand(c.group_size, -1), k.unsqueeze(0)]), c.rms_eps)

    def _qkv(self) -> Linear:
        c = self._config
        parts, biases = [], []
        for x, heads in ("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads):
            weight, bias = self._parts(f"self_attn.{x}_proj", heads * c.head_dim, c.hidden_size)
            parts.append(self._by_kv_head(weight, heads, x))
            if bias is not None:
                biases.append(self._by_kv_head(bias, heads, x))
        return make_linear(_join(parts), _join(biases) if biases else None)

    def _by_kv_head(self, rows: Tensor, heads: int, x: str) -> Tensor:
        """[kv_heads, heads of x per KV head * head_dim, ...], rotary pairs side by side."""
        paired = rows if x == "v" else interleave(rows, heads)
        return paired.reshape(self._config.num_kv_heads, -1, *rows.shape[1:])

    def _gate_up(self) -> Linear:
        c = self._config
        pairs = [self._parts(f"mlp.{x}_proj", c.intermediate_size, c.hidden_size) for x in ("gate", "up")]
        biases = [bias for _, bias in pairs if bias is not None]
        return make_linear(torch.cat([weight for weight, _ in pairs]), torch.cat(biases) if biases else None)

    def _linear(self, name: str, out: int, into: int) -> Linear:
        return make_linear(*self._parts(name, out, into))

    def _parts(self, name: str, out: int, into: int) -> tuple[Tensor, Tensor | None]:
        weight = self._checkpoint.read(f"{self._prefix}{name}.weight", (out, into))
        return weight, self._checkpoint.read_bias(f"{self._prefix}{name}.bias", out)


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate KV head by KV head."""
    return torch.cat(parts, dim=1).flatten(0, 1)
