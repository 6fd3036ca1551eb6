"""Confirmations in any order, repeated, late and from several redeemers: one lease, one yes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv import confirmations
from tandem.kv.blocks import BlockPool
from tandem.kv.confirmations import Answer, Confirmations
from tandem.kv.leases import LeaseTable
from tandem.messages import Claim, Claimed, Confirm, Confirmed, NotConfirmed

HOLDER = "prefill_0.a"


def make(leases: int = 3) -> tuple[Confirmations, LeaseTable, BlockPool]:
    pool = BlockPool(2 * leases)
    table = LeaseTable(pool, 10.0, lambda: 0.0)
    for i in range(leases):
        table.grant(f"r{i}", pool.allocate(2))
    return Confirmations(HOLDER, table), table, pool


def ask(correlation: int, lease_id: int, holder: str = HOLDER) -> Confirm:
    return Confirm(correlation=correlation, lease_id=lease_id, holder=holder)


def test_repeated_question_gets_the_same_answer_and_another_redeemer_is_refused() -> None:
    answers, table, pool = make(1)
    assert answers.answer("decode_0.1", ask(7, 1)) == Confirmed(correlation=7)
    assert answers.answer("decode_0.1", ask(7, 1)) == Confirmed(correlation=7)
    assert (table.held, pool.used) == (0, 0)
    for redeemer, correlation in (("decode_1.1", 7), ("decode_0.2", 7), ("decode_0.1", 8)):
        refusal = answers.answer(redeemer, ask(correlation, 1))
        assert isinstance(refusal, NotConfirmed)
        assert refusal.code == "handle_used"


def test_question_for_another_epoch_ends_no_lease() -> None:
    answers, table, _ = make(1)
    refusal = answers.answer("decode_0.1", ask(1, 1, "prefill_0.9"))
    assert isinstance(refusal, NotConfirmed)
    assert refusal.code == "handle_stale_epoch"
    assert "'prefill_0.9'" in refusal.message
    assert table.held == 1


def test_refusal_is_repeated_too() -> None:
    """The same question gets the same answer, even if the world has changed meanwhile."""
    answers, table, pool = make(1)
    first = answers.answer("d", ask(1, 2))
    assert isinstance(first, NotConfirmed)
    assert first.code == "lease_unknown"
    table.grant("later", pool.allocate(0))
    assert answers.answer("d", ask(1, 2)) == first


def claim(correlation: int, lease_id: int) -> Claim:
    return Claim(correlation=correlation, lease_id=lease_id, holder=HOLDER)


def test_who_has_claimed_a_lease_redeems_it_and_nobody_else_does() -> None:
    answers, table, pool = make(1)
    for _ in range(2):
        assert answers.answer("decode_0.1", claim(7, 1)) == Claimed(correlation=7)
    assert (table.held, pool.used) == (1, 2)
    for question in (claim(8, 1), ask(9, 1)):
        for redeemer in ("decode_0.1", "decode_0.2"):
            refusal = answers.answer(redeemer, question)
            assert isinstance(refusal, NotConfirmed)
            assert refusal.code == "handle_used"
    assert answers.answer("decode_0.1", ask(7, 1)) == Confirmed(correlation=7)
    assert (table.held, pool.used) == (0, 0)
    assert answers.answer("decode_0.1", claim(7, 1)) == Claimed(correlation=7)  # as it was answered the first time


def test_what_was_claimed_and_not_redeemed_ends_as_it_would_have() -> None:
    answers, table, pool = make(2)
    for lease in (1, 2):
        answers.answer("d", claim(lease, lease))
    table.cancel(["r0"])
    assert (table.held, pool.used) == (1, 2)
    refusal = answers.answer("d", ask(1, 1))
    assert isinstance(refusal, NotConfirmed)
    assert refusal.code == "lease_cancelled"


@given(
    questions=st.lists(
        st.tuples(st.sampled_from(["d0", "d1"]), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=30
    )
)
def test_one_yes_per_lease(questions: list[tuple[str, int, int]]) -> None:
    """Whoever asks first about a lease gets the yes; everyone keeps the answer they got first."""
    answers, table, _ = make(3)
    given_before: dict[tuple[str, Confirm], Answer] = {}
    redeemed: set[int] = set()
    for redeemer, correlation, lease_id in questions:
        question = ask(100 * lease_id + correlation, lease_id)  # a correlation is of one pull, and so of one lease
        answer = answers.answer(redeemer, question)
        assert answer.correlation == question.correlation
        if (redeemer, question) in given_before:
            assert answer == given_before[redeemer, question]
            continue
        given_before[redeemer, question] = answer
        if lease_id <= 3 and lease_id not in redeemed:
            assert isinstance(answer, Confirmed)
            redeemed.add(lease_id)
        else:
            assert isinstance(answer, NotConfirmed)
            assert answer.code == ("handle_used" if lease_id <= 3 else "lease_unknown")
    assert table.held == 3 - len(redeemed)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmations, "REMEMBERED", 2)
    answers, _, _ = make(3)
    for i in (1, 2, 3):
        answers.answer("d", ask(i, i))
    assert len(answers._answers) == 2
    assert answers.answer("d", ask(3, 3)) == Confirmed(correlation=3)
    assert isinstance(answers.answer("d", ask(1, 1)), NotConfirmed)
