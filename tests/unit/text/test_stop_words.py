"""Stop words, against a search of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.errors import TandemError
from tests.unit.text.test_stream import TINY, encode, pieces, stream

words = st.lists(st.text(alphabet="ab é", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)
texts = st.text(alphabet="ab é", max_size=30)


def first_stop(text: str, words: tuple[str, ...], begin: int = 0) -> tuple[int, str] | None:
    """Where the text is cut and by which word: the first to end after ``begin``, of those the longest."""
    for end in range(begin + 1, len(text) + 1):
        ending = [word for word in words if text[:end].endswith(word)]
        if ending:
            word = max(ending, key=len)
            return end - len(word), word
    return None


@given(texts, words, st.lists(st.integers(0, 60)) | st.none())
@example("ababb", ("abb",), None)
@example("xabcd", ("abcd", "bc"), None)
@example("aab", ("ab", "aab"), None)
@settings(max_examples=1000)
def test_cut_where_a_search_finds_it(text: str, words: tuple[str, ...], cuts: list[int] | None) -> None:
    answer = stream(TINY, words)
    sent = "".join(pieces(answer, encode(TINY, text), cuts))
    found = first_stop(text, words)
    assert (sent, answer.stop_word) == ((text, None) if found is None else (text[: found[0]], found[1]))
    assert answer.stopped == (found is not None)


@given(texts, words)
@settings(max_examples=500)
def test_holds_back_no_more_than_it_must(text: str, words: tuple[str, ...]) -> None:
    answer, left = stream(TINY, words), ""
    token_ids = encode(TINY, text)
    for n, token_id in enumerate(token_ids, start=1):
        left += answer.push([token_id])
        if answer.stopped:
            break
        whole = TINY.decode(token_ids[:n]).rstrip("\ufffd")
        held = max(k for k in range(len(whole) + 1) for word in words if word.startswith(whole[len(whole) - k :]))
        assert left == whole[: len(whole) - held]


@given(texts, words, st.integers(0, 12), st.lists(st.integers(0, 60)) | st.none())
@settings(max_examples=500)
def test_min_tokens(text: str, words: tuple[str, ...], min_tokens: int, cuts: list[int] | None) -> None:
    token_ids = encode(TINY, text)
    answer = stream(TINY, words, min_tokens)
    sent = "".join(pieces(answer, token_ids, cuts))
    begin = len(TINY.decode(token_ids[:min_tokens]).rstrip("\ufffd"))
    found = first_stop(text, words, begin)
    assert sent == (text if found is None else text[: found[0]])


@given(texts, words, st.lists(st.integers(0, 60)) | st.none())
def test_counts_the_tokens_up_to_the_stop(text: str, words: tuple[str, ...], cuts: list[int] | None) -> None:
    token_ids = encode(TINY, text)
    answer = stream(TINY, words)
    pieces(answer, token_ids, cuts)
    ends = [n for n in range(len(token_ids) + 1) if first_stop(TINY.decode(token_ids[:n]).rstrip("\ufffd"), words)]
    assert answer.num_tokens == (ends[0] if ends else len(token_ids))


def test_across_tokens_and_inside_a_character() -> None:
    answer = stream(TINY, ("👋 EN",))
    token_ids = encode(TINY, "Bye 👋 END")
    assert "".join(pieces(answer, token_ids)) == "Bye "
    assert answer.stop_word == "👋 EN"


def test_nothing_comes_after_the_stop() -> None:
    answer = stream(TINY, ("b",))
    assert answer.push(encode(TINY, "abc")) == "a"
    assert answer.push(encode(TINY, "more")) == ""
    assert answer.flush() == ""


def test_held_text_comes_at_the_end() -> None:
    answer = stream(TINY, ("END",))
    assert "".join(answer.push([i]) for i in encode(TINY, "the EN")) == "the "
    assert answer.flush() == "EN"
    assert answer.flush() == ""


def test_a_stop_word_that_only_the_flush_completes() -> None:
    answer = stream(TINY, ("\ufffd",))
    smile = encode(TINY, "a😀")
    assert answer.push(smile[:-1]) == "a"
    assert answer.flush() == ""
    assert answer.stopped


def test_long_stop_words_of_one_letter() -> None:
    answer = stream(TINY, ("a" * 10_000, "b"))
    token_ids = encode(TINY, "a" * 9_999)
    assert answer.push(token_ids) == ""
    assert answer.push(encode(TINY, "c")) == "a" * 9_999 + "c"


def test_refuses_an_empty_stop_word() -> None:
    with pytest.raises(TandemError, match=r"stop_words\[1\] is empty") as caught:
        stream(TINY, ("a", ""))
    assert caught.value.code == "invalid_request"
