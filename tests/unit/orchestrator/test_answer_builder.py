"""An answer as it grows, over the text of a real tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import Stopping, TokenLogprob, Tokens
from tandem.orchestrator.answer_builder import AnswerBuilder
from tandem.text.codec import TextCodec
from tests.unit.text.models import write_model

TEXT = "Größe 👋 and the dog does not mind."


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec(write_model(tmp_path_factory.mktemp("model")))


def build(codec: TextCodec, *stop_words: str, min_tokens: int = 0) -> AnswerBuilder:
    return AnswerBuilder(codec, stop_words, Stopping(max_tokens=999, min_tokens=min_tokens))


def plain(codec: TextCodec, text: str) -> list[int]:
    return codec.encode(text, add_special_tokens=False)


def tokens(index: int, ids: list[int], logprobs: list[TokenLogprob] | None = None) -> Tokens:
    return Tokens(request_id="r", index=index, token_ids=ids, logprobs=logprobs)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=20))
def test_repeats_and_overlaps_do_not_show(codec: TextCodec, batches: list[tuple[int, int]]) -> None:
    """Whatever an engine repeats: every token once, in order. A batch is how far back it begins, and its length."""
    ids, answer, text = plain(codec, TEXT), build(codec), ""
    for back, length in [*batches, (0, len(ids))]:
        have = len(answer.token_ids)
        begin = max(0, have - back)
        batch = ids[begin : begin + length]
        assert answer.push(tokens(begin, batch)) == max(0, begin + len(batch) - have)
        if piece := answer.take_piece():
            text += piece.text
    piece = answer.take_piece(final=True)
    assert piece is not None
    assert answer.token_ids == ids
    assert text + piece.text == TEXT


def test_a_gap_is_a_defect(codec: TextCodec) -> None:
    with pytest.raises(ValueError, match="tokens 2 on came before token 0"):
        build(codec).push(tokens(2, [5]))


def test_half_a_character_stays_until_it_is_whole(codec: TextCodec) -> None:
    ids = plain(codec, "🌍")
    assert len(ids) > 1  # the tokenizer spells it in bytes
    answer = build(codec)
    for place, token in enumerate(ids[:-1]):
        answer.push(tokens(place, [token]))
        assert answer.take_piece() is None
    answer.push(tokens(len(ids) - 1, ids[-1:]))
    piece = answer.take_piece()
    assert piece is not None
    assert (piece.text, piece.token_ids) == ("🌍", ids)


def test_half_a_character_at_the_end_does_not_vanish(codec: TextCodec) -> None:
    ids = plain(codec, "🌍")[:1]
    answer = build(codec)
    answer.push(tokens(0, ids))
    piece = answer.take_piece(final=True)
    assert piece is not None
    assert (piece.text, piece.token_ids) == ("�", ids)


def test_a_stop_word_cuts_text_tokens_and_count(codec: TextCodec) -> None:
    """Tokens of one batch that come after the one that completed the stop word are not of the answer."""
    ids, answer = plain(codec, TEXT), build(codec, "dog")
    entries = [TokenLogprob(logprob=-float(n)) for n in range(len(ids))]
    new = answer.push(tokens(0, ids, entries))
    assert answer.stopped
    assert new == len(answer.token_ids) < len(ids)
    assert "dog" in codec.decode(answer.token_ids)
    assert "dog" not in codec.decode(answer.token_ids[:-1])
    piece = answer.take_piece(final=True)
    assert piece is not None
    assert piece.text == TEXT[: TEXT.index("dog")]
    assert piece.token_ids == ids[:new]
    assert piece.logprobs == entries[:new]
    assert answer.push(tokens(new, ids[new:])) == 0
    assert answer.take_piece() is None


def test_the_beginning_of_a_stop_word_is_held_back(codec: TextCodec) -> None:
    ids, answer = plain(codec, "the dog"), build(codec, "dogs")
    answer.push(tokens(0, ids))
    now, rest = answer.take_piece(), answer.take_piece(final=True)
    assert now is not None
    assert rest is not None
    assert (now.text, rest.text) == ("the ", "dog")
    assert now.token_ids + rest.token_ids == ids


def test_a_stop_word_within_the_least_length_is_text(codec: TextCodec) -> None:
    ids = plain(codec, "dog and dog")
    first = len(plain(codec, "dog"))
    answer = build(codec, "dog", min_tokens=first)
    answer.push(tokens(0, ids))
    piece = answer.take_piece(final=True)
    assert piece is not None
    assert piece.text == "dog and "


def test_log_probabilities_stay_with_their_tokens(codec: TextCodec) -> None:
    ids, answer = plain(codec, TEXT), build(codec)
    entries = [TokenLogprob(logprob=-float(n)) for n in range(len(ids))]
    answer.push(tokens(0, ids[:3], entries[:3]))
    answer.push(tokens(1, ids[1:6], entries[1:6]))  # two of them came before
    answer.push(tokens(6, ids[6:], entries[6:]))
    piece = answer.take_piece(final=True)
    assert piece is not None
    assert piece.token_ids == ids
    assert piece.logprobs == entries


def test_the_time_of_the_last_token_moves_with_new_tokens_only(codec: TextCodec) -> None:
    answer = build(codec)
    assert answer.last_token_at is None
    answer.push(tokens(0, [5]))
    then = answer.last_token_at
    answer.push(tokens(0, [5]))
    assert then is not None
    assert answer.last_token_at == then
