"""What a worker has in hand: this router's part to the moment, that of others by its reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import Load
from tandem.routing.answers import AnswerLengths
from tandem.routing.speeds import Speeds
from tandem.routing.worker import PREFILL_S, STEP_S, Booking, WorkerState
from tests.unit.routing import sites


def make(load: Load | None = None) -> WorkerState:
    worker = WorkerState(Speeds(), AnswerLengths(), lambda _: None)
    worker.begin(sites.BATCH, load or sites.measured())
    return worker


def in_hand(worker: WorkerState) -> tuple[int, int, int]:
    return worker.requests, worker.tokens, worker.blocks


def test_a_choice_counts_at_once_and_until_it_ends() -> None:
    worker = make()
    booking = Booking(worker, 100, 7)
    assert in_hand(worker) == (1, 100, 7)
    booking.send()
    booking.read()
    booking.read()
    assert in_hand(worker) == (1, 0, 7)
    booking.end()
    booking.end()
    assert in_hand(worker) == (0, 0, 0)


def test_a_report_with_the_request_in_it_does_not_count_it_twice() -> None:
    worker = make()
    booking = Booking(worker, 100, 7)
    booking.send()
    worker.report(sites.measured(queued=1, queued_tokens=100, blocks_used=7))
    assert in_hand(worker) == (1, 100, 7)


def test_what_answers_may_yet_take_is_counted_as_far_as_they_come_to_it() -> None:
    """Of others' requests a report tells what they hold, and what they would hold with their longest answers."""
    answers = AnswerLengths()
    worker = WorkerState(Speeds(), answers, lambda _: None)
    worker.begin(sites.BATCH, sites.measured(running=1, blocks_used=7, blocks_wanted=100))
    assert in_hand(worker) == (1, 0, 107)
    for _ in range(2000):
        answers.ended(1000, 100)
    worker.report(sites.measured(running=1, blocks_used=7, blocks_wanted=100))
    assert in_hand(worker) == (1, 0, 7 + 11)


def test_a_report_from_before_the_request_does_not_hide_it() -> None:
    worker = make()
    Booking(worker, 100, 7).send()
    worker.report(sites.measured())
    assert in_hand(worker) == (1, 100, 7)


def test_what_others_gave_is_added() -> None:
    worker = make()
    Booking(worker, 100, 7).send()
    worker.report(sites.measured(queued=2, running=3, queued_tokens=450, blocks_used=30))
    assert in_hand(worker) == (5, 450, 30)
    Booking(worker, 10, 1)  # on its way, and not in any report
    assert in_hand(worker) == (6, 460, 31)
    worker.report(sites.measured(queued=2, running=3, queued_tokens=450, blocks_used=30))
    assert in_hand(worker) == (6, 460, 31)


def test_a_lost_worker_has_only_what_was_not_ended_yet() -> None:
    worker = make(sites.measured(queued=9, queued_tokens=900, blocks_used=90))
    booking = Booking(worker, 100, 7)
    worker.end()
    assert in_hand(worker) == (1, 100, 7)
    booking.end()
    assert in_hand(worker) == (0, 0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["book", "send", "read", "end", "report"]), st.integers(0, 50), st.integers(0, 9)),
        max_size=40,
    )
)
def test_nothing_is_left_when_everything_has_ended(steps: list[tuple[str, int, int]]) -> None:
    worker, bookings = make(), list[Booking]()
    for step, tokens, pick in steps:
        if step == "book":
            bookings.append(Booking(worker, tokens, pick))
        elif step == "report":
            worker.report(sites.measured(queued=pick, queued_tokens=tokens, blocks_used=tokens))
        elif bookings:
            booking = bookings[pick % len(bookings)]
            {"send": booking.send, "read": booking.read, "end": booking.end}[step]()
    for booking in bookings:
        booking.end()
    worker.report(sites.measured())
    assert in_hand(worker) == (0, 0, 0)


def test_speeds_are_guessed_only_until_they_are_measured() -> None:
    worker = make(Load())
    assert worker.prefill_s == PREFILL_S
    assert worker.step_s(1) == STEP_S
    worker.report(sites.measured(prefill_seconds=5.0, step_seconds=5.0 + 100 * 0.03))
    assert worker.prefill_s == 0.005
    assert abs(worker.step_s(1) - 0.03) < 1e-9


def test_a_worker_that_was_not_measured_is_taken_to_be_like_the_others() -> None:
    typical = Speeds()
    measured, new = (WorkerState(typical, AnswerLengths(), lambda _: None) for _ in range(2))
    measured.begin(sites.BATCH, sites.measured(prefill_seconds=7.0))
    new.begin(sites.BATCH, Load())
    assert new.prefill_s == 0.007


def test_a_step_in_a_full_batch_takes_twice_as_long_as_in_an_empty_one() -> None:
    worker = make()
    assert abs(worker.step_s(sites.BATCH) / worker.step_s(0) - 2.0) < 1e-9


def test_counters_that_begin_anew_measure_nothing() -> None:
    worker = make()
    worker.begin(sites.BATCH, Load())
    assert worker.prefill_s == sites.PREFILL_S
    worker.report(sites.measured(prefill_tokens=1, prefill_seconds=0.001))
    assert abs(worker.prefill_s - sites.PREFILL_S) < 1e-9


def test_only_workers_whose_speeds_clearly_differ_are_told_apart() -> None:
    """Of three that are alike, one has read a long prompt, which takes longer per token."""
    typical = Speeds()
    workers = [WorkerState(typical, AnswerLengths(), lambda _: None) for _ in range(4)]
    tokens = 100_000
    for worker, times in zip(workers, (1.0, 1.0, 1.3, 4.0), strict=True):
        seconds = times * tokens * sites.PREFILL_S
        worker.begin(sites.BATCH, sites.measured(prefill_tokens=tokens, prefill_seconds=seconds, step_seconds=seconds))
    typical.prefill.add(1e4, 1e7, 1e4)  # of many others
    for worker in workers:
        worker.report(sites.measured())
    assert [worker.prefill_s / sites.PREFILL_S for worker in workers] == pytest.approx([1.0, 1.0, 1.0, 4.0], rel=0.01)
