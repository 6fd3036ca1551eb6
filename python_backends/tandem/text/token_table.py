"""The bytes that each token stands for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tandem.errors import TandemError

_WORD_START = "▁"
"""How SentencePiece vocabularies write a space."""


class TokenTable:
    """Token id → bytes. Special tokens, and ids that the tokenizer does not know, stand for none.

    Two kinds of decoder are known: byte-level (GPT-2, Llama 3, Qwen, SmolLM), and SentencePiece with byte fallback
    (Llama 2, Mistral). Both only join the bytes of tokens, so text can be decoded piece by piece.
    """

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        """``path`` is named in errors.

        Raises:
            TandemError: ``invalid_request``: the tokenizer has another kind of decoder.
        """
        about: dict[str, Any] = json.loads(tokenizer.to_str())
        kinds = _decoder_kinds(about["decoder"])
        byte_level = "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}
        if not byte_level and (kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or set(kinds[3:]) > {"Strip"}):
            raise TandemError(
                "invalid_request",
                f"{path}: decoder is {kinds}; supported are ByteLevel, and Replace, ByteFallback, Fuse, Strip",
            )
        self.drops_first_space: bool = "Strip" in kinds
        """Whether decoded text loses a space at its very beginning."""
        special = {token["content"] for token in about["added_tokens"] if token["special"]}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        to_bytes = _from_byte_level if byte_level else _from_sentence_piece
        self._bytes = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            self._bytes[token_id] = b"" if token in special else to_bytes(token)
        self.max_token_bytes: int = max(
            [1, *map(len, self._bytes), *(len(token.encode()) for token in special)],
        )
        """Most bytes of text that one token stands for."""

    def join(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of these tokens, one after another."""
        table, size = self._bytes, len(self._bytes)
        return b"".join([table[token_id] for token_id in token_ids if 0 <= token_id < size])


def _decoder_kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [part["type"] for part in decoder.get("decoders", [decoder])]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters (``bytes_to_unicode`` of its encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:  # an added token, written as it is
        return token.encode()


def _from_sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_WORD_START, " ").encode()
