"""The figures of a model that decide its size: from the checkpoint's config.json, or from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tandem.errors import TandemError

PositiveInt = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]

_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
}
"""Ours, and the name in every config.json."""
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")


class Mla(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Multi-head latent attention (DeepSeek): the cache holds one compressed vector per token, for all heads."""

    q_lora_rank: PositiveInt
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt


class Moe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mixture of experts."""

    num_experts: PositiveInt
    experts_per_token: PositiveInt
    intermediate_size: PositiveInt
    """Of one expert."""
    shared_experts: Count = 0
    """Experts that read every token."""
    dense_layers: Count = 0
    """First layers that have no experts."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder-only transformer with gated MLPs."""

    architecture: str
    """The one in ``architectures`` of config.json."""
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    context: PositiveInt
    tied_embeddings: bool = False
    moe: Moe | None = None
    mla: Mla | None = None

    @property
    def attention_parameters(self) -> tuple[int, int, int]:
        """Of one layer: those split by heads, those split by KV heads, those that every rank has whole."""
        heads, hidden = self.num_heads, self.hidden_size
        if (mla := self.mla) is None:
            return 2 * hidden * heads * self.head_dim, 2 * hidden * self.num_kv_heads * self.head_dim, 0
        key = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        split = mla.q_lora_rank * heads * key
        split += mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim) + heads * mla.v_head_dim * hidden
        return split, 0, hidden * (mla.q_lora_rank + mla.kv_lora_rank + mla.qk_rope_head_dim)

    @property
    def dense_mlp_parameters(self) -> int:
        """Of one layer without experts."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and of the output projection if that is not the same; each."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights but the norms, which do not count."""
        layers = self.num_layers * sum(self.attention_parameters)
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        if (moe := self.moe) is None:
            return layers + embeddings + self.num_layers * self.dense_mlp_parameters
        expert = 3 * self.hidden_size * moe.intermediate_size
        one = expert * (moe.num_experts + moe.shared_experts) + self.hidden_size * moe.num_experts
        with_experts = self.num_layers - moe.dense_layers
        return layers + embeddings + moe.dense_layers * self.dense_mlp_parameters + with_experts * one


def read_shape(directory: Path) -> Shape:
    """The shape in a checkpoint's config.json.

    Raises:
        TandemError: ``invalid_request``: the file cannot be read, or lacks a field.
    """
    path = directory / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise TandemError("invalid_request", f"{path}: cannot be read: {error}") from error
    try:
        return msgspec.convert(_translate(config), Shape)
    except KeyError as error:
        raise TandemError("invalid_request", f"{path}: {error.args[0]}: is missing") from error
    except (IndexError, TypeError, msgspec.ValidationError) as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error


def _translate(config: dict[str, Any]) -> dict[str, Any]:
    """Our names for what config.json says."""
    fields = {ours: config[theirs] for ours, theirs in _FIELDS.items()}
    heads = config["num_attention_heads"]
    fields |= {
        "architecture": config["architectures"][0],
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    if config.get("kv_lora_rank"):
        fields["mla"] = {name: config[name] for name in Mla.__struct_fields__}
    if experts := next((config[name] for name in _EXPERTS if config.get(name)), None):
        fields["moe"] = {
            "num_experts": experts,
            "experts_per_token": config["num_experts_per_tok"],
            "intermediate_size": config.get("moe_intermediate_size") or config["intermediate_size"],
            "shared_experts": config.get("n_shared_experts") or 0,
            "dense_layers": config.get("first_k_dense_replace") or 0,
        }
    return fields
