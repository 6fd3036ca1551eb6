"""What the forward pass needs of a checkpoint's ``config.json``. What it cannot honour is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import TandemError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the architectures that share this forward pass (SmolLM2 is a llama)."""


@dataclass(frozen=True)
class Llama3Rope:
    """Frequency scaling of Llama 3.1 and later: long wavelengths are stretched by ``factor``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one Llama-family model."""

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context: int
    """Most tokens that the model was made for."""
    rms_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None
    tied_embeddings: bool

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes


def read_config(model_dir: Path) -> ModelConfig:
    """Read ``config.json`` of a checkpoint in Hugging Face form.

    Raises:
        TandemError: ``invalid_request``, naming the file, the field, its value and what is supported.
    """
    path = model_dir / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TandemError(
            "invalid_request", f"cannot read {path}: {error}; model.path must hold a checkpoint"
        ) from error
    try:
        return _parse(raw)
    except KeyError as error:
        raise TandemError("invalid_request", f"{path}: the field {error} is missing") from error
    except _Unsupported as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error


class _Unsupported(Exception):
    def __init__(self, field: str, value: object, supported: str) -> None:
        super().__init__(f"{field} is {value!r}; this engine supports {supported}")


def _parse(raw: dict[str, Any]) -> ModelConfig:
    family = raw["model_type"]
    if family not in FAMILIES:
        raise _Unsupported("model_type", family, ", ".join(FAMILIES))
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise _Unsupported("hidden_act", activation, "silu")
    heads, kv_heads = raw["num_attention_heads"], raw.get("num_key_value_heads") or raw["num_attention_heads"]
    if heads % kv_heads:
        raise _Unsupported("num_key_value_heads", kv_heads, f"divisors of num_attention_heads ({heads})")
    theta, scaling = _parse_rope(raw)
    return ModelConfig(
        family=family,
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate_size=raw["intermediate_size"],
        vocab_size=raw["vocab_size"],
        context=_context(raw),
        rms_eps=raw["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=raw.get("tie_word_embeddings", False),
    )


def _context(raw: dict[str, Any]) -> int:
    """The model's context; within a sliding window full attention is the same, beyond it would be wrong."""
    context: int = raw["max_position_embeddings"]
    window: int | None = raw.get("sliding_window")
    if window and raw.get("use_sliding_window", raw["model_type"] == "mistral"):
        return min(context, window)
    return context


def _parse_rope(raw: dict[str, Any]) -> tuple[float, Llama3Rope | None]:
    """Base and scaling, from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    partial = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise _Unsupported("partial_rotary_factor", partial, "1.0")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise _Unsupported("rope_type", kind, "default and llama3")
    return float(theta), Llama3Rope(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_context=rope["original_max_position_embeddings"],
    )
