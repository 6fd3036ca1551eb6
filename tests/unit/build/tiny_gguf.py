"""A small GGUF file, written with the reference library from a random checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.checkpoints import SPECIAL_TOKENS, make_random_checkpoint, make_tokenizer

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_gguf(
    directory: Path,
    kind: str = "llama",
    *,
    fields: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    architecture: str = "llama",
    quantized: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **tensors: np.ndarray,
) -> Path:
    """A GGUF file of a random checkpoint, which lies in ``directory / 'checkpoint'``.

    ``fields`` replace or add fields, ``drop`` leaves out fields and tensors, ``tensors`` adds tensors.
    """
    checkpoint = make_random_checkpoint(kind, directory / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    path = directory / "tiny.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (_model_fields(config) | _tokenizer_fields() | (fields or {})).items():
        if name not in drop:
            _add(writer, name, value)
    for name, weights in (_tensors(checkpoint, config) | tensors).items():
        if name in drop:
            continue
        kept = gguf.GGMLQuantizationType.F32 if weights.ndim == 1 else quantized
        writer.add_tensor(name, gguf.quants.quantize(weights, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _model_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "llama.rope.dimension_count": config["head_dim"],
    }


def _tokenizer_fields() -> dict[str, Any]:
    tokenizer = make_tokenizer()
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}<|im_end|>",
    }


def _tensors(checkpoint: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for name, weights in load_file(checkpoint / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if name.endswith("q_proj.weight"):
            weights = permute(weights, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weights = permute(weights, config["num_key_value_heads"])
        if stem in ("model.embed_tokens", "model.norm", "lm_head"):
            short = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            short = f"blk.{layer}.{_NAMES[part]}"
        found[f"{short}.weight"] = weights
    return found


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own order of query and key rows, spelled out: halves of a head are interleaved row by row."""
    rows = weights.shape[0] // heads
    order = [head * rows + half * (rows // 2) + i for head in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weights[order]


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, list):
        writer.add_array(name, value)
    else:
        writer.add_uint32(name, value)
