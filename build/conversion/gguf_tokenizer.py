"""The tokenizer in a GGUF file: GPT-2's byte-level BPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from conversion.source import refuse

_END_OF_TURN = "<|im_end|>"
"""ChatML's mark; a model that speaks ChatML ends its answers with it, whatever the file names as end of sequence."""

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of token (``llama_token_type`` of llama.cpp) that are never made by merging."""

_PRE_TOKENIZERS = {
    # Every digit is a token of its own: without Digits, ByteLevel keeps numbers together and merges may join them.
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}
"""By the names that llama.cpp gives to ways of splitting text before merging."""


class GgufTokenizer:
    """Reads the vocabulary out of a file's fields and writes it in Hugging Face's form."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self._path, self._fields = path, fields
        self._demand("tokenizer.ggml.model", ["gpt2"])
        self._demand("tokenizer.ggml.pre", list(_PRE_TOKENIZERS))
        for name in ("tokens", "token_type", "merges"):
            if f"tokenizer.ggml.{name}" not in fields:
                raise refuse(path, f"the field tokenizer.ggml.{name} is missing")
        self._tokens: list[str] = list(fields["tokenizer.ggml.tokens"])
        self._template: str | None = fields.get("tokenizer.chat_template")

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence."""
        return self._id("bos_token_id")

    @property
    def pad_id(self) -> int | None:
        """The token that fills batches."""
        return self._id("padding_token_id")

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end an answer: those the file names, and the end of a turn in the chat template."""
        named = [self._id(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id")]
        ids = [token_id for token_id in named if token_id is not None]
        if self._template and _END_OF_TURN in self._template and _END_OF_TURN in self._tokens:
            ids.append(self._tokens.index(_END_OF_TURN))
        return sorted(set(ids))

    def write(self, out: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into the directory ``out``."""
        self._build().save(str(out / "tokenizer.json"), pretty=False)
        names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "model_max_length": self._fields.get("llama.context_length"),
        }
        config |= {
            key: self._tokens[token_id] for key, name in names.items() if (token_id := self._id(name)) is not None
        }
        if self._template is not None:
            config["chat_template"] = self._template
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _build(self) -> Tokenizer:
        merges = [tuple(merge.split(" ", 1)) for merge in self._fields["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(self._tokens)}, merges))
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[self._fields["tokenizer.ggml.pre"]]
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self._fields["tokenizer.ggml.token_type"]
        tokenizer.add_tokens(
            [
                AddedToken(token, special=kind == _CONTROL, normalized=False)
                for kind, token in zip(kinds, self._tokens, strict=True)
                if kind in (_CONTROL, _USER_DEFINED)
            ]
        )
        return tokenizer

    def _demand(self, name: str, supported: list[str]) -> None:
        if (found := self._fields.get(name)) not in supported:
            raise refuse(
                self._path,
                f"{name} is {found!r}; supported are {supported}. Convert the model's Hugging Face directory instead",
            )

    def _id(self, name: str) -> int | None:
        """The id in a field, or None where the file has none."""
        found = self._fields.get(f"tokenizer.ggml.{name}")
        if found is not None and not 0 <= found < len(self._tokens):
            raise refuse(self._path, f"tokenizer.ggml.{name} is {found}; the vocabulary has {len(self._tokens)} tokens")
        return found
