"""Incremental text: whole characters, nothing lost, nothing held longer than it must be."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tandem.text.stream import TextStream
from tandem.text.token_table import TokenTable
from tests.checkpoints import demo_model, make_tokenizer
from tests.unit.text.models import sentence_piece
from tests.unit.text.strings import STRINGS

TINY = make_tokenizer()
DEMO = Tokenizer.from_file(str(demo_model() / "tokenizer.json"))
LLAMA2 = sentence_piece()
TABLES = {id(t): TokenTable(t, Path("tokenizer.json")) for t in (TINY, DEMO, LLAMA2)}

BYTE_IDS = [i for i in range(256 + 3) if len(TABLES[id(TINY)].join([i])) == 1]
UNKNOWN_IDS = [-1, -49152, 49152, 2**40]


def stream(tokenizer: Tokenizer, stop_words: tuple[str, ...] = (), min_tokens: int = 0) -> TextStream:
    """A new answer."""
    return TextStream(TABLES[id(tokenizer)], stop_words, min_tokens)


def pieces(answer: TextStream, token_ids: list[int], cuts: list[int] | None = None) -> list[str]:
    """What leaves, token by token, or cut at ``cuts`` into batches of tokens."""
    ends = sorted({0, len(token_ids), *(cut % (len(token_ids) + 1) for cut in cuts)}) if cuts is not None else None
    batches = [token_ids[a:b] for a, b in pairwise(ends)] if ends else [[i] for i in token_ids]
    return [*map(answer.push, batches), answer.flush()]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


tiny_ids = st.lists(st.integers(0, TINY.get_vocab_size() - 1) | st.sampled_from(BYTE_IDS))
demo_ids = st.lists(st.integers(0, DEMO.get_vocab_size() - 1) | st.integers(3, 300) | st.integers(0, 2))
cuts = st.lists(st.integers(0, 200)) | st.none()


@given(tiny_ids, cuts)
@settings(max_examples=500)
def test_joined_is_decoded_whole_for_random_tokens(token_ids: list[int], cuts: list[int] | None) -> None:
    assert "".join(pieces(stream(TINY), token_ids, cuts)) == TINY.decode(token_ids, skip_special_tokens=True)


@given(demo_ids, cuts)
@settings(max_examples=500)
def test_joined_is_decoded_whole_for_the_demo_model(token_ids: list[int], cuts: list[int] | None) -> None:
    assert "".join(pieces(stream(DEMO), token_ids, cuts)) == DEMO.decode(token_ids, skip_special_tokens=True)


@given(st.lists(st.binary(max_size=6) | st.sampled_from(["é", "€", "😀", "👨‍👩‍👧", "\ufffd"]).map(str.encode)))
@settings(max_examples=1000)
def test_bytes_that_are_not_text(parts: list[bytes]) -> None:
    by_byte = {TABLES[id(TINY)].join([i])[0]: i for i in BYTE_IDS}
    token_ids = [by_byte[byte] for part in parts for byte in part]
    assert "".join(pieces(stream(TINY), token_ids)) == TINY.decode(token_ids)


@given(st.text(max_size=60).filter(lambda text: "<" not in text))  # the special tokens' texts, which leave no text
@settings(max_examples=500)
def test_text_comes_back_without_half_characters(text: str) -> None:
    token_ids = encode(TINY, text)
    answer = stream(TINY)
    left = ""
    for n, token_id in enumerate(token_ids, start=1):
        left += answer.push([token_id])
        whole = TABLES[id(TINY)].join(token_ids[:n]).decode("utf-8", "ignore")
        assert left == whole, "all whole characters leave at once, and no half one"
    assert left + answer.flush() == text


@pytest.mark.parametrize("text", STRINGS)
def test_every_script(text: str) -> None:
    for tokenizer in (TINY, DEMO, LLAMA2):
        token_ids = encode(tokenizer, text)
        expected = tokenizer.decode(token_ids, skip_special_tokens=True)
        sent = pieces(stream(tokenizer), token_ids)
        assert "".join(sent) == expected
        assert not any("\ufffd" in piece for piece in sent)


@pytest.mark.parametrize(
    "text", ["👨‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", unicodedata.normalize("NFD", "Việt Nam"), "한국어", "नमस्ते", "你好"]
)
def test_emoji_and_combining_marks_one_by_one(text: str) -> None:
    by_byte = {TABLES[id(TINY)].join([i])[0]: i for i in BYTE_IDS}
    sent = pieces(stream(TINY), [by_byte[byte] for byte in text.encode()])
    assert [piece for piece in sent if piece] == list(text)


@pytest.mark.parametrize("byte", [0x80, 0xFF, 0xC0, 0xE2, 0xF0])
def test_endless_nonsense_keeps_coming(byte: int) -> None:
    token_id = next(i for i in BYTE_IDS if TABLES[id(TINY)].join([i]) == bytes([byte]))
    answer, left = stream(TINY), ""
    for n in range(2000):
        left += answer.push([token_id])
        assert len(left) >= n
    assert left + answer.flush() == "\ufffd" * 2000


def test_a_replacement_character_that_was_meant() -> None:
    token_ids = encode(TINY, "a\ufffdb")
    assert "".join(pieces(stream(TINY), token_ids)) == "a\ufffdb"


def test_half_a_character_at_the_end() -> None:
    answer = stream(TINY)
    assert answer.push(encode(TINY, "😀")[:-1]) == ""
    assert answer.flush() == "\ufffd"
    assert answer.flush() == ""


def test_special_tokens_and_unknown_ids_have_no_text() -> None:
    for tokenizer in (TINY, DEMO, LLAMA2):
        assert "".join(pieces(stream(tokenizer), [0, 1, *UNKNOWN_IDS, 2])) == ""
    smile = encode(TINY, "😀")
    assert "".join(pieces(stream(TINY), [smile[0], 1, *smile[1:]])) == "😀" == TINY.decode([smile[0], 1, *smile[1:]])


@given(st.text(alphabet="abcdefgh é好😀\t", max_size=40), cuts)
def test_sentence_piece(text: str, cuts: list[int] | None) -> None:
    token_ids = encode(LLAMA2, text)
    expected = LLAMA2.decode(token_ids, skip_special_tokens=True)
    assert expected == text
    assert "".join(pieces(stream(LLAMA2), [1, *token_ids], cuts)) == expected


@pytest.mark.parametrize("text", ["a", " a", "  a", "   ", " ", ""])
def test_sentence_piece_drops_one_space_at_the_beginning(text: str) -> None:
    for added in ("", " "):
        token_ids = [i for c in added + text for i in [LLAMA2.token_to_id(c.replace(" ", "▁"))]]
        assert "".join(pieces(stream(LLAMA2), token_ids)) == LLAMA2.decode(token_ids)
