"""GGUF files: what comes out is what went in, and what cannot be converted is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from conversion.convert import convert
from tandem.errors import TandemError
from tests.unit.build.tiny_gguf import make_gguf


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


@pytest.mark.parametrize("kind", ["llama", "llama_untied"])
def test_weights_come_back_bit_by_bit(tmp_path: Path, kind: str) -> None:
    convert(make_gguf(tmp_path, kind), tmp_path / "out", silent)

    original = load_file(tmp_path / "checkpoint" / "model.safetensors")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, weights in original.items():
        np.testing.assert_array_equal(converted[name], weights, err_msg=name)


def test_quantized_weights_are_the_dequantized_ones(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    convert(make_gguf(tmp_path, quantized=kind), tmp_path / "out", silent)

    original = load_file(tmp_path / "checkpoint" / "model.safetensors")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    expected = gguf.quants.dequantize(gguf.quants.quantize(original[name], kind), kind)
    np.testing.assert_array_equal(converted[name], expected)
    # Rows are moved, never changed, so the projections are the same quantized rows too.
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = gguf.quants.dequantize(gguf.quants.quantize(original[name], kind), kind)
    np.testing.assert_array_equal(converted[name], expected)


def test_configuration(tmp_path: Path) -> None:
    convert(make_gguf(tmp_path), tmp_path / "out", silent)

    original = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    same += ("head_dim", "max_position_embeddings", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "hidden_act")
    assert {name: config[name] for name in same} == {name: original[name] for name in same}
    assert config["rope_theta"] == original["rope_parameters"]["rope_theta"]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 0}, "2 is <|im_end|>"


def test_every_digit_is_a_token(tmp_path: Path) -> None:
    convert(make_gguf(tmp_path), tmp_path / "out", silent)

    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("2024", add_special_tokens=False).tokens == ["2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>a", add_special_tokens=False).ids[0] == 1


def _truncate(path: Path, size: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * size)])


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "wrong architecture": (lambda d: make_gguf(d, architecture="gemma3"), "general.architecture is 'gemma3'"),
    "missing tensor": (
        lambda d: make_gguf(d, drop=("blk.1.ffn_up.weight",)),
        "tensor model.layers.1.mlp.up_proj.weight missing",
    ),
    "unknown tensor": (
        lambda d: make_gguf(d, **{"blk.0.attn_extra.weight": np.zeros((2, 2), np.float32)}),
        "the tensor blk.0.attn_extra.weight is unknown",
    ),
    "unexpected bias": (
        lambda d: make_gguf(d, **{"blk.0.attn_q.bias": np.zeros(64, np.float32)}),
        "tensor model.layers.0.self_attn.q_proj.bias unknown",
    ),
    "wrong shape": (
        lambda d: make_gguf(d, fields={"llama.feed_forward_length": 128}),
        "tensor model.layers.0.mlp.gate_proj.weight has shape [96, 64]; the configuration asks for [128, 64]",
    ),
    "missing field": (
        lambda d: make_gguf(d, drop=("llama.context_length",)),
        "the field llama.context_length is missing",
    ),
    "rope scaling": (
        lambda d: make_gguf(d, fields={"llama.rope.scaling.type": "yarn"}),
        "llama.rope.scaling.type is 'yarn'",
    ),
    "partly rotated": (
        lambda d: make_gguf(d, fields={"llama.rope.dimension_count": 8}),
        "llama.rope.dimension_count is 8",
    ),
    "other tokenizer": (
        lambda d: make_gguf(d, fields={"tokenizer.ggml.pre": "gemma"}),
        "tokenizer.ggml.pre is 'gemma'",
    ),
    "no vocabulary": (
        lambda d: make_gguf(d, drop=("tokenizer.ggml.merges",)),
        "the field tokenizer.ggml.merges is missing",
    ),
    "token id out of range": (
        lambda d: make_gguf(d, fields={"tokenizer.ggml.eos_token_id": 400}),
        "tokenizer.ggml.eos_token_id is 400; the vocabulary has 400 tokens",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    path = make(tmp_path)
    _assert_refused(path, tmp_path / "out", reason)


@pytest.mark.parametrize("content", [b"", b"GG", b"\x89PNG\r\n" + bytes(4000), b"GGUF" + b"\xff" * 4000])
def test_refuses_what_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.gguf"
    path.write_bytes(content)
    _assert_refused(path, tmp_path / "out", "not a whole GGUF file")


@pytest.mark.parametrize("part", [0.0001, 0.001, 0.01, 0.03, 0.05, 0.1, 0.5, 0.9, 0.9999])
def test_refuses_a_truncated_file(tmp_path: Path, part: float) -> None:
    path = make_gguf(tmp_path)
    _truncate(path, part)
    _assert_refused(path, tmp_path / "out", "not a whole GGUF file")


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    _assert_refused(tmp_path / "nothing.gguf", tmp_path / "out", "no such file or directory")


def _assert_refused(path: Path, out: Path, reason: str) -> None:
    with pytest.raises(TandemError) as caught:
        convert(path, out, silent)
    assert caught.value.code == "invalid_request"
    assert str(path) in caught.value.message
    assert reason in caught.value.message
    assert not out.exists()
    assert _leftovers(out) == []


def _leftovers(out: Path) -> list[Any]:
    return list(out.parent.glob(f".{out.name}.partial*"))
