"""Hugging Face directories of every family: converted, they are the same model to transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion.convert import convert
from tandem.errors import TandemError
from tests.checkpoints import CHAT_TEMPLATE, KINDS, make_random_checkpoint


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS), ("qwen2", torch.bfloat16), ("qwen3", torch.float16)]
)
def test_same_model(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    source = make_random_checkpoint(kind, tmp_path / "source", dtype=dtype)
    convert(source, tmp_path / "out", silent)

    original = AutoModelForCausalLM.from_pretrained(source)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert converted.dtype == dtype
    assert converted.config.to_dict() | {"_name_or_path": ""} == original.config.to_dict() | {"_name_or_path": ""}
    assert converted.state_dict().keys() == original.state_dict().keys()
    for name, weights in original.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weights), name
    ids = torch.arange(40).reshape(1, -1)
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, original(ids).logits)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    source = make_random_checkpoint("llama", tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    assert "lm_head.weight" not in weights
    save_file(
        weights
        | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        source / "model.safetensors",
    )
    convert(source, tmp_path / "out", silent)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()


def test_shards_become_one_file(tmp_path: Path) -> None:
    whole = make_random_checkpoint("qwen2", tmp_path / "whole")
    shards = make_random_checkpoint("qwen2", tmp_path / "shards", shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    fingerprints = {convert(whole, tmp_path / "a", silent), convert(shards, tmp_path / "b", silent)}

    assert len(fingerprints) == 1
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_context_is_that_of_a_sliding_window(tmp_path: Path) -> None:
    convert(make_random_checkpoint("mistral_window", tmp_path / "source"), tmp_path / "out", silent)
    assert json.loads((tmp_path / "out" / "tandem.json").read_text())["context"] == 128


def test_rope_scaling_is_kept(tmp_path: Path) -> None:
    source = make_random_checkpoint("llama3", tmp_path / "source")
    convert(source, tmp_path / "out", silent)
    scaling = [json.loads((d / "config.json").read_text())["rope_parameters"] for d in (source, tmp_path / "out")]
    assert scaling[0] == scaling[1]
    assert scaling[0]["rope_type"] == "llama3"


def test_tokenizer_and_chat_template(tmp_path: Path) -> None:
    source = make_random_checkpoint("llama", tmp_path / "source")
    convert(source, tmp_path / "out", silent)

    original, converted = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Größe 12 👋"}]
    assert converted("Größe 12 👋<|im_end|>").input_ids == original("Größe 12 👋<|im_end|>").input_ids
    expected = original.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert converted.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert _template(tmp_path / "out") == CHAT_TEMPLATE


def test_end_of_answer_is_also_that_of_the_tokenizer(tmp_path: Path) -> None:
    convert(make_random_checkpoint("qwen2", tmp_path / "source"), tmp_path / "out", silent)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2], "0 is the model's own, 2 is <|im_end|>, the tokenizer's"


@pytest.mark.parametrize(
    "template",
    [
        "the {{ messages }}",
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "the {{ messages }}"}],
    ],
)
def test_older_places_of_the_chat_template(tmp_path: Path, template: object) -> None:
    source = make_random_checkpoint("llama", tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    _edit(source / "tokenizer_config.json", chat_template=template)
    convert(source, tmp_path / "out", silent)
    assert _template(tmp_path / "out") == "the {{ messages }}"


def test_without_chat_template(tmp_path: Path) -> None:
    source = make_random_checkpoint("llama", tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    convert(source, tmp_path / "out", silent)
    assert _template(tmp_path / "out") is None


def _remove_field(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    del config["hidden_size"]
    (source / "config.json").write_text(json.dumps(config))


def _remove_tensor(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.bias"]
    save_file(weights, source / "model.safetensors")


def _add_tensor(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"model.layers.0.mlp.experts.0.weight": torch.ones(2)}, source / "model.safetensors")


def _change_dtype(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, source / "model.safetensors")


def _truncate(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _shard(source: Path, *, index: dict[str, str]) -> None:
    (source / "model.safetensors").rename(source / "a.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _shard_twice(source: Path) -> None:
    shutil.copy(source / "model.safetensors", source / "b.safetensors")
    _shard(source, index={"model.norm.weight": "a.safetensors", "model.embed_tokens.weight": "b.safetensors"})


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "other family": (
        lambda d: _edit(d / "config.json", model_type="mixtral"),
        "config.json",
        "model_type is 'mixtral'; this engine supports llama, mistral, qwen2, qwen3",
    ),
    "rope scaling": (
        lambda d: _edit(d / "config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
        "config.json",
        "rope_type is 'yarn'; this engine supports default and llama3",
    ),
    "quantized": (
        lambda d: _edit(d / "config.json", quantization_config={"quant_method": "gptq"}),
        "config.json",
        "quantization_config is 'gptq'; supported are plain weights",
    ),
    "activation": (lambda d: _edit(d / "config.json", hidden_act="gelu"), "config.json", "hidden_act is 'gelu'"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json", "cannot be read as JSON"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config.json", "cannot be read as JSON"),
    "list instead of config": (
        lambda d: (d / "config.json").write_text("[]"),
        "config.json",
        "must hold a JSON object",
    ),
    "missing field": (_remove_field, "config.json", "the field 'hidden_size' is missing"),
    "wrong kind": (
        lambda d: _edit(d / "config.json", num_attention_heads="4"),
        "config.json",
        "a field has a value of the wrong kind",
    ),
    "wrong shape": (
        lambda d: _edit(d / "config.json", intermediate_size=128),
        "",
        "tensor model.layers.0.mlp.gate_proj.weight has shape [96, 64]; the configuration asks for [128, 64]",
    ),
    "missing tensor": (_remove_tensor, "", "tensor model.layers.1.self_attn.k_proj.bias missing"),
    "unknown tensor": (_add_tensor, "", "tensor model.layers.0.mlp.experts.0.weight unknown"),
    "dtype": (_change_dtype, "model.safetensors", "tensor model.norm.weight has dtype I8"),
    "truncated weights": (_truncate, "model.safetensors", "not a whole safetensors file"),
    "no safetensors": (
        lambda d: (d / "model.safetensors").write_bytes(b"hello"),
        "model.safetensors",
        "not a whole safetensors file",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "", "neither model.safetensors nor"),
    "missing shard": (
        lambda d: _shard(d, index={"model.norm.weight": "c.safetensors"}),
        "c.safetensors",
        "not a whole safetensors file (No such file",
    ),
    "shard elsewhere": (
        lambda d: _shard(d, index={"model.norm.weight": "../a.safetensors"}),
        "model.safetensors.index.json",
        "weight_map must give the file of every tensor, in this directory",
    ),
    "tensor twice": (_shard_twice, "b.safetensors", "is in another file too"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json", "missing; where there is only a"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json", "not a tokenizer"),
    "token without weights": (
        lambda d: _edit(d / "config.json", vocab_size=399),
        "tokenizer.json",
        "it has token id 399, but vocab_size in config.json is 399",
    ),
    "list as config": (
        lambda d: (d / "tokenizer_config.json").write_text("[]"),
        "tokenizer_config.json",
        "must hold a JSON object",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses(tmp_path: Path, name: str) -> None:
    spoil, file, reason = BROKEN[name]
    source = make_random_checkpoint("qwen2", tmp_path / "source")
    spoil(source)
    with pytest.raises(TandemError) as caught:
        convert(source, tmp_path / "out", silent)
    assert caught.value.code == "invalid_request"
    assert str(source / file) in caught.value.message
    assert reason in caught.value.message
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.partial*"))


def _template(out: Path) -> str | None:
    config: dict[str, str] = json.loads((out / "tokenizer_config.json").read_text())
    return config.get("chat_template")


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
