"""How long answers are taken to become."""

from __future__ import annotations

import pytest

from tandem.routing.answers import REMEMBERED, AnswerLengths


def test_until_answers_have_ended_each_is_taken_to_come_to_all_that_it_may() -> None:
    answers = AnswerLengths()
    assert [answers.expected(n) for n in (0, 1, 7, 4000)] == [1, 1, 7, 4000]


def test_what_ended_of_late_counts_by_its_tokens() -> None:
    answers = AnswerLengths()
    for _ in range(10 * REMEMBERED):
        answers.ended(1000, 10)
        answers.ended(10, 10)
    assert answers.share == pytest.approx(20 / 1010, rel=0.02)
    assert answers.tokens == pytest.approx(10, rel=0.02)


def test_one_short_answer_says_little_and_what_changed_is_soon_known() -> None:
    answers = AnswerLengths()
    answers.ended(100, 1)
    assert answers.share > 0.9
    for _ in range(5 * REMEMBERED):
        answers.ended(1000, 100)
    assert answers.share == pytest.approx(0.1, rel=0.02)
    for _ in range(REMEMBERED):
        answers.ended(1000, 1000)
    assert answers.share > 0.6
