"""Which tensors a Llama-family model has. A checkpoint must have just these, no more and no less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conversion.source import TensorSpec, refuse
from tandem.engines.torch.config import ModelConfig

_DERIVED = ("rotary_emb.inv_freq",)
"""Ends of names that older checkpoints carry although they follow from the configuration."""


def select_tensors(path: Path, specs: list[TensorSpec], config: ModelConfig, raw: dict[str, Any]) -> list[TensorSpec]:
    """The tensors the model needs, out of those that the checkpoint at ``path`` has.

    Raises:
        TandemError: ``invalid_request``: tensors are missing, unknown, or of another shape than config.json says.
    """
    expected = _expected_shapes(config, raw)
    found = {spec.name: spec for spec in specs if not spec.name.endswith(_DERIVED)}
    if config.tied_embeddings:
        found.pop("lm_head.weight", None)
    if missing := expected.keys() - found.keys():
        raise refuse(path, f"{_list(missing)} missing; the configuration of a {config.family} model asks for it")
    if unknown := found.keys() - expected.keys():
        raise refuse(path, f"{_list(unknown)} unknown; a {config.family} model has no such weights")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise refuse(
                path, f"tensor {name} has shape {list(found[name].shape)}; the configuration asks for {list(shape)}"
            )
    return list(found.values())


def _expected_shapes(config: ModelConfig, raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    layer = _layer_shapes(config, raw)
    for i in range(config.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer_shapes(config: ModelConfig, raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    matrices = {f"self_attn.{name}": shape for name, shape in attention.items()}
    matrices |= {"self_attn.o_proj": (hidden, queries)} | {f"mlp.{name}": shape for name, shape in mlp.items()}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    if config.family == "qwen3":
        shapes |= {f"self_attn.{x}_norm.weight": (config.head_dim,) for x in "qk"}
    for name in _biased(config, raw):
        shapes[f"{name}.bias"] = matrices[name][:1]
    return shapes


def _biased(config: ModelConfig, raw: dict[str, Any]) -> list[str]:
    """The projections that have a bias: always query, key and value in Qwen2, as configured elsewhere."""
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    if config.family == "qwen2":
        return qkv
    names = [*qkv, "self_attn.o_proj"] if raw.get("attention_bias") else []
    if raw.get("mlp_bias"):
        names += [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    return names


def _list(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(first)}{more}"
