"""Answers that anyone can check, and contents that show a mix-up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.engines.sim.contents import BlockContents, name_contents
from tandem.engines.sim.tokens import expected_answer
from tandem.kv.prefix_cache import Chain

TOKENS = st.lists(st.integers(0, 399), min_size=1, max_size=40)


@given(TOKENS, st.integers(0, 2**64 - 1), st.integers(1, 1000))
def test_an_answer_is_the_same_every_time_and_within_the_vocabulary(prompt: list[int], seed: int, vocab: int) -> None:
    answer = expected_answer(seed, prompt, 20, vocab)
    assert answer == expected_answer(seed, prompt, 20, vocab)
    assert answer[:7] == expected_answer(seed, prompt, 7, vocab)
    assert all(0 <= token < vocab for token in answer)


def test_seed_prompt_and_place_make_another_answer() -> None:
    answer = expected_answer(1, [1, 2, 3], 50, 128_256)
    assert expected_answer(2, [1, 2, 3], 50, 128_256) != answer
    assert expected_answer(1, [1, 2, 4], 50, 128_256) != answer
    assert len(set(answer)) > 40


@given(TOKENS, st.data())
def test_contents_tell_a_changed_token_from_the_block_it_is_in_on(tokens: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:place], tokens[place] + 1, *tokens[place + 1 :]]
    names, others = (name_contents(Chain(t, 4, ""), t, 4) for t in (tokens, changed))
    assert len(names) == -(-len(tokens) // 4)
    same = [a == b for a, b in zip(names, others, strict=True)]
    assert same == [i < place // 4 for i in range(len(names))]


def test_blocks_hold_what_was_written_last() -> None:
    contents = BlockContents(num_blocks=10, block_bytes=32)
    contents.write([7, 2, 5], [11, 2**64 - 1, 13])
    assert contents.hold([2, 5, 7], [2**64 - 1, 13, 11])
    contents.write([5], [14])
    assert not contents.hold([2, 5, 7], [2**64 - 1, 13, 11])
    assert contents.hold([], [])
