"""The text side of one model: everything that turns text into tokens and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tandem.errors import TandemError
from tandem.text.chat_template import ChatTemplate
from tandem.text.stream import TextStream
from tandem.text.token_table import TokenTable

_SHRINK = 4
"""Most bytes that Unicode normalization makes one of (NFKC: a mathematical letter becomes a plain one)."""


class TextCodec:
    """Reads the text files of a converted model once; immutable after, so any thread may use it."""

    def __init__(self, model_dir: Path) -> None:
        """
        Raises:
            TandemError: ``invalid_request``: a file is missing or wrong; names it.
        """
        self._tokenizer = _read_tokenizer(model_dir / "tokenizer.json")
        self._table = TokenTable(self._tokenizer, model_dir / "tokenizer.json")
        config = _read_json(model_dir / "tokenizer_config.json")
        tokens = _special_tokens(config)
        template = config.get("chat_template")
        self._template = ChatTemplate(template, tokens) if template is not None else None
        self._model_dir = model_dir

        generation = _read_json(model_dir / "generation_config.json")
        eos = generation.get("eos_token_id")
        self.eos_token_ids: tuple[int, ...] = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        """The tokens that end an answer."""
        self.bos_token_id: int | None = generation.get("bos_token_id")
        self.vocab_size: int = _field(model_dir / "config.json", "vocab_size")
        """Token ids are below this; it may be more than the tokenizer knows."""
        self.max_model_len: int = _field(model_dir / "tandem.json", "context")
        """Most tokens of prompt and answer together that the model was made for."""
        self.max_token_bytes: int = self._table.max_token_bytes * (_SHRINK if self._tokenizer.normalizer else 1)
        """Most bytes of text that become one token: a text of more than n times as many has more than n tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a plain text, begun as the model wants it. Releases the GIL.

        Raises:
            TandemError: ``invalid_request``: the text is not Unicode (it has a lone surrogate).
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise TandemError("invalid_request", f"the text is not valid Unicode: {_lone_surrogate(text)}") from error
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for a chat, special tokens included: encode it with ``add_special_tokens=False``.

        Raises:
            TandemError: ``invalid_request``: the model has no chat template, or the template refuses the messages.
        """
        if self._template is None:
            raise TandemError(
                "invalid_request", "messages: this model has no chat template; send the whole prompt as text_input"
            )
        return self._template.render(messages)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a chat; raises as ``render_chat`` and ``encode`` do."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens, without special tokens."""
        stream = self.stream()
        return stream.push(token_ids) + stream.flush()

    def stream(self, stop_words: Sequence[str] = (), *, min_tokens: int = 0) -> TextStream:
        """A new answer. Stop words that end within its first ``min_tokens`` tokens count as plain text.

        Raises:
            TandemError: ``invalid_request``: a stop word is empty.
        """
        return TextStream(self._table, stop_words, min_tokens)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise _unreadable(path, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return found


def _field(path: Path, name: str) -> int:
    found = _read_json(path).get(name)
    if not isinstance(found, int) or found < 1:
        raise TandemError("invalid_request", f"{path}: {name} is {found!r}; expected a number above 0")
    return found


def _unreadable(path: Path, error: Exception) -> TandemError:
    return TandemError(
        "invalid_request", f"cannot read {path}: {error}; `python build/convert.py SOURCE OUT` writes a model directory"
    )


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The texts of bos_token, eos_token and so on; older files give each as an object."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _lone_surrogate(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}"
    return "it is not a text"
