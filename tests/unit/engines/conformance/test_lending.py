"""A prompt whose beginning another worker has read is computed from there on, and answered alike. A library does not
show its cache: what is to be borrowed from it is computed."""

from __future__ import annotations

from collections.abc import Callable

from tandem.kv.hashes import hash_blocks
from tandem.messages import EngineEvent, Finished, Lender, Prefilled
from tests.unit.engines.conformance.conftest import Pair, introduce
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    changed,
    fresh_prompt,
    handle_of,
    make_work,
    reason_of,
    tokens_of,
)
from tests.unit.engines.conformance.subjects import Subject

BLOCK = 4


def lender_of(harness: Harness, num_tokens: int) -> Lender:
    return Lender(worker_id=harness.engine.info.worker_id, num_tokens=num_tokens)


def cached_in(events: list[EngineEvent]) -> int:
    end = events[-1]
    assert isinstance(end, Prefilled | Finished)
    return end.cached_tokens


def test_the_next_turn_of_a_conversation_is_borrowed_from_where_it_was_answered(pair: Pair, subject: Subject) -> None:
    """Prefill holds the first prompt alone, decode the answer too."""
    work = make_work("turn-1", fresh_prompt(41, seed=1), max_tokens=30)
    (first,) = pair.prefill.run(as_prefill(work))
    (second,) = pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
    known = [*work.token_ids, *tokens_of(first), *tokens_of(second, start=1)][:-1]
    pair.decode.until_cached(hash_blocks(known, BLOCK))
    pair.prefill.until_idle()
    before = pair.prefill.load

    turn = make_work("turn-2", [*known, *fresh_prompt(9, seed=2)], max_tokens=10)
    alone = changed(turn, request_id="alone", salt="nobody has it")
    lender = lender_of(pair.decode, len(known))
    (reading,) = pair.prefill.run(changed(as_prefill(turn), lender=lender))
    (rest,) = pair.decode.run(as_decode(turn, tokens_of(reading), handle_of(reading)))
    (expected,) = pair.decode.run(alone)
    assert tokens_of(reading) + tokens_of(rest, start=1) == tokens_of(expected)
    lent = pair.prefill.until_idle().tokens_borrowed - before.tokens_borrowed
    if subject.moves_kv_itself:
        assert cached_in(reading) == len(known) // BLOCK * BLOCK
        assert lent == cached_in(reading) - 40
    else:
        assert lent == 0
    pair.decode.until_idle()


def test_a_worker_that_does_both_stages_borrows_too(start: Callable[..., Harness], subject: Subject) -> None:
    one, other = start("both_0"), start("both_1")
    introduce(one, other)
    work = make_work("both", fresh_prompt(50, seed=3))
    (first,) = one.run(work)
    one.until_cached(hash_blocks(work.token_ids, BLOCK))
    (second,) = other.run(changed(work, lender=lender_of(one, 50)))
    assert tokens_of(first) == tokens_of(second)
    assert cached_in(second) == (48 if subject.moves_kv_itself else 0)
    one.until_idle()
    other.until_idle()


def test_what_nobody_lends_is_computed(pair: Pair) -> None:
    """The lender has nothing of it, is not known, or is the worker itself."""
    decode, prefill = pair.decode, pair.prefill
    for number, worker_id in enumerate([decode.engine.info.worker_id, "nobody", prefill.engine.info.worker_id]):
        work = make_work(f"not lent {number}", fresh_prompt(40, seed=10 + number), max_tokens=5)
        (expected,) = decode.run(changed(work, salt="apart"))
        lender = Lender(worker_id=worker_id, num_tokens=40)
        (first,) = prefill.run(changed(as_prefill(work), lender=lender))
        (rest,) = decode.run(as_decode(work, tokens_of(first), handle_of(first)))
        assert tokens_of(first) + tokens_of(rest, start=1) == tokens_of(expected)
        assert cached_in(first) == 0
    prefill.until_idle()
    decode.until_idle()


def test_tenants_lend_each_other_nothing(pair: Pair) -> None:
    work = make_work("mine", fresh_prompt(40, seed=20))
    pair.decode.run(work)
    pair.decode.until_cached(hash_blocks(work.token_ids, BLOCK))
    other = changed(as_prefill(work), salt="another", lender=lender_of(pair.decode, 40))
    (events,) = pair.prefill.run(other)
    assert cached_in(events) == 0
    pair.prefill.engine.cancel([other.request_id])
    pair.prefill.until_idle()


def test_many_borrow_at_once_and_some_are_cancelled(pair: Pair) -> None:
    """Every one ends, and nothing is held in the end, on either side."""
    works = [make_work(f"many-{n}", fresh_prompt(40 + n, seed=30 + n), max_tokens=4) for n in range(12)]
    expected = [tokens_of(events) for events in pair.decode.run(*(changed(w, salt="apart") for w in works))]
    pair.decode.run(*(changed(w, request_id=f"read {w.request_id}") for w in works))
    for work in works:
        pair.decode.until_cached(hash_blocks(work.token_ids, BLOCK))
    lender = lender_of(pair.decode, 40)
    reading = [changed(as_prefill(w), lender=lender) for w in works]
    pair.prefill.engine.submit(reading)
    pair.prefill.engine.cancel([w.request_id for w in reading[::3]])
    for number, work in enumerate(reading):
        events = pair.prefill.wait(work.request_id)
        if isinstance(events[-1], Finished):
            assert number % 3 == 0
            assert reason_of(events) == "cancelled"
        elif number % 3:
            (rest,) = pair.decode.run(as_decode(works[number], tokens_of(events), handle_of(events)))
            assert tokens_of(events) + tokens_of(rest, start=1) == expected[number]
    pair.prefill.engine.cancel([w.request_id for w in reading])
    pair.prefill.until_idle()
    pair.decode.until_idle()
