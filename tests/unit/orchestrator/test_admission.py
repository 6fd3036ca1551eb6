"""Who goes, who waits and who is refused, by a clock that the test turns."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.deployment import Limits
from tandem.orchestrator.admission import Admission, Demand, Refusal, Ticket
from tandem.routing.disaggregation import NOBODY_WAITS, Waiting
from tandem.routing.room import Room


class Workers:
    """Room as the test says."""

    def __init__(self, room: Room | None) -> None:
        self.room = room

    def __call__(self, kv_share: float) -> Room | None:
        assert kv_share == 1.0
        return self.room


class Fares(NamedTuple):
    """As a plan."""

    first_token_s: float
    spares_prefill: bool = False


def demand(prompt: int = 100, answer: int = 100, blocks: int = 10, priority: int = 5, tenant: str = "") -> Demand:
    return Demand(priority=priority, tenant=tenant, prompt_tokens=prompt, max_tokens=answer, blocks=blocks)


def make(room: Room | None = None, **limits: float) -> Admission:
    return Admission(Limits(**limits), Workers(room))  # type: ignore[arg-type]


def enter(admission: Admission, now: float, count: int = 1, **fields: int) -> list[Ticket]:
    return [admission.enter(demand(**fields), now)[0] for _ in range(count)]


@pytest.mark.parametrize(
    ("room", "limits", "fit"),
    [
        (Room(requests=3.0), {}, 3),
        (Room(blocks=29.0), {}, 2),
        (Room(prompt_tokens=150.0), {}, 2),  # the second one is begun, since there is still something to be had
        (Room(requests=1.0), {"max_requests": 4}, 4),
        (Room(), {"max_tokens_in_flight": 650}, 3),
        (Room(requests=0.0, blocks=0.0), {}, 1),  # alone it always may go
        (Room(), {}, 10),
        (None, {}, 10),
    ],
)
def test_as_many_go_as_there_is_room_for(room: Room | None, limits: dict[str, float], fit: int) -> None:
    admission = make(room, **limits)
    tickets = enter(admission, 0.0, 10)
    assert admission.admit(0.0) == tickets[:fit]
    assert admission.admit(1.0) == []
    assert admission.in_flight == fit
    admission.leave(tickets[0])
    assert admission.in_flight == fit - 1
    assert len(admission.admit(2.0)) == min(1, 10 - fit)


def test_what_the_router_counts_is_not_counted_twice() -> None:
    admission = make(Room(requests=2.0))
    tickets = enter(admission, 0.0, 5)
    assert admission.admit(0.0) == tickets[:2]
    for ticket in tickets[:2]:
        admission.booked(ticket)
    assert admission.admit(0.0) == tickets[2:4]  # the room is what is left beyond what was booked


def test_nobody_waits_longer_than_is_allowed() -> None:
    admission = make(Room(requests=0.0), max_queue_s=2.0)
    first, *others = enter(admission, 0.0, 3)
    assert admission.admit(0.0) == [first]
    late = enter(admission, 1.0)
    assert admission.expire(1.9) == []
    assert admission.expire(2.0) == others
    assert admission.expire(3.0) == late
    assert not admission.queue


def serve_slowly(admission: Admission, seconds_each: float) -> float:
    """Ten requests that go one by one; returns the time at which the last one went, with one more in flight."""
    running, *waiting = enter(admission, 0.0, 11)
    assert admission.admit(0.0) == [running]
    now = 0.0
    for ticket in waiting:
        now += seconds_each
        admission.leave(running)
        assert admission.admit(now) == [ticket]
        running = ticket
    return now


def test_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back() -> None:
    admission = make(Room(requests=0.0), max_queue_s=10.0)
    now = serve_slowly(admission, seconds_each=1.0)
    enter(admission, now, 8)  # a second each
    with pytest.raises(Refusal, match=r"a wait of 9\.0 s is expected.*try again in 1 s") as one:
        enter(admission, now, 8)
    assert (one.value.reason, one.value.code) == ("queue", "overloaded")
    with pytest.raises(Refusal, match="is expected"):
        admission.check(5, "", now)
    admission.check(1, "", now)  # the others do not stand before a higher priority,
    admission.check(5, "else", now)  # nor before a tenant that has nothing waiting
    assert enter(admission, now, priority=1)


def test_a_standstill_counts_once() -> None:
    """Not for each of those who wait: when it is over they go as fast as before."""
    admission = make(Room(requests=0.0), max_queue_s=100.0)
    now = serve_slowly(admission, seconds_each=1.0)
    enter(admission, now, 20)
    admission.check(5, "", now + 50)
    with pytest.raises(Refusal):
        admission.check(5, "", now + 99)


@pytest.mark.parametrize(("left", "refused"), [(0.5, True), (2.0, False), (math.inf, False)])
def test_who_has_no_time_left_for_the_prompt_is_refused(left: float, refused: bool) -> None:
    admission = make(Room(read_s=0.005, alone_s=0.01))
    if not refused:
        admission.enter(demand(), 0.0, left, lambda _: Fares(1.5))
        return
    with pytest.raises(Refusal, match=r"timeout_s: 0.50 s are left.*1.50 s for the prompt") as one:
        admission.enter(demand(), 0.0, left, lambda _: Fares(1.5))
    assert (one.value.reason, one.value.code) == ("deadline", "deadline_exceeded")
    admission.enter(demand(), 0.0, left, lambda _: Fares(0.1))  # nearly all of it is cached


def test_where_too_many_wait_the_one_with_the_least_claim_makes_room() -> None:
    admission = make(Room(requests=0.0), max_waiting=4)
    enter(admission, 0.0, tenant="heavy")  # type: ignore[arg-type]
    admission.admit(0.0)
    heavy = enter(admission, 0.0, 4, tenant="heavy")  # type: ignore[arg-type]
    ticket, displaced = admission.enter(demand(tenant="light"), 0.0)
    assert displaced is heavy[-1]
    assert (displaced.state, ticket.state) == ("left", "waiting")
    for worse in (demand(tenant="heavy"), demand(tenant="light", priority=6)):
        with pytest.raises(Refusal, match=r"4 requests wait.*limits\.max_waiting"):
            admission.enter(worse, 0.0)
    assert admission.enter(demand(tenant="heavy", priority=4), 0.0)[1] is heavy[-2]
    assert len(admission.queue) == 4


NO_PREFILL = Room(prompt_tokens=0.0, read_s=0.01)
"""All prefill workers have as much to read as they take in advance."""


def pass_by(admission: Admission, **fields: Any) -> Ticket:
    """A request comes that is better done whole."""
    return admission.enter(demand(**fields), 0.0, foresee=lambda _: Fares(0.0, spares_prefill=True))[0]


def test_who_is_better_done_whole_does_not_wait_for_prefill_workers() -> None:
    admission, asked = make(NO_PREFILL), []

    def foresee(waiting: Waiting) -> Fares:
        asked.append(waiting)
        return Fares(0.0, spares_prefill=len(asked) > 1)

    running, waiting = enter(admission, 0.0, 2)
    assert admission.admit(0.0) == [running]
    stays, goes = (admission.enter(demand(), 0.0, foresee=foresee)[0] for _ in range(2))
    assert (stays.state, goes.state) == ("waiting", "admitted")
    assert asked == [Waiting(1, 200 * 0.01 * 0.5), Waiting(2, 400 * 0.01 * 0.5)]  # half of the tokens are prompts
    assert (stays.passed, goes.passed) == (NOBODY_WAITS, asked[1])
    assert admission.in_flight == 2
    admission.booked(goes)
    assert goes.passed == NOBODY_WAITS  # what comes later is another matter
    assert [waiting, stays] == list(admission.queue)


@pytest.mark.parametrize(
    ("room", "limits", "fields"),
    [
        ({"requests": 2.0}, {}, {}),  # one is in flight and unbooked, the next is for the one that waits
        ({"blocks": 29.0}, {}, {}),
        ({}, {"max_requests": 2}, {}),
        ({}, {"max_tokens_in_flight": 599}, {}),
        ({}, {}, {"priority": 6}),
    ],
)
def test_nobody_takes_what_the_next_in_the_queue_waits_for(
    room: dict[str, float], limits: dict[str, float], fields: dict[str, int]
) -> None:
    for more, state in ((0, "waiting"), (1, "admitted")):
        admission = make(
            msgspec.structs.replace(NO_PREFILL, **{name: value + more for name, value in room.items()}),
            **{name: value + more for name, value in limits.items()},
        )
        enter(admission, 0.0, 2)
        admission.admit(0.0)
        ticket = pass_by(admission, **{name: value - more for name, value in fields.items()})
        assert ticket.state == state


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3), st.booleans()), max_size=30),
    st.integers(1, 12),
    st.integers(1, 100),
)
def test_whoever_passes_the_next_in_the_queue_still_has_its_place(
    requests: list[tuple[int, int, bool]], slots: int, blocks: int
) -> None:
    room = msgspec.structs.replace(NO_PREFILL, requests=slots, blocks=blocks)
    admission = make(room)
    enter(admission, 0.0)
    admission.admit(0.0)
    for wanted, priority, spares_prefill in requests:
        head = admission.queue.head()
        had_place = head is not None and admission._has_place(room, head.demand)
        ticket, _ = admission.enter(
            demand(blocks=wanted, priority=priority),
            0.0,
            foresee=lambda _, spares_prefill=spares_prefill: Fares(0.0, spares_prefill),
        )
        if ticket.state == "admitted":
            assert spares_prefill
            assert had_place
            assert head.priority >= priority
            assert admission.queue.head() is head
            assert admission._has_place(room, head.demand)


def test_tenants_pay_for_requests_that_pass() -> None:
    """One that has four done whole gives the other its next turns."""
    admission = make(NO_PREFILL)
    enter(admission, 0.0)
    admission.admit(0.0)
    for tenant in ("passing", "other"):
        enter(admission, 0.0, 6, tenant=tenant)  # type: ignore[arg-type]
    for _ in range(4):
        assert pass_by(admission, tenant="passing").state == "admitted"
    order = [admission.queue.pop().tenant for _ in range(12)]
    assert order[:6].count("other") == 5  # the first turn had begun


def test_who_passes_still_has_to_be_in_time() -> None:
    admission = make(Room(prompt_tokens=0.0, read_s=0.01, alone_s=0.01))
    enter(admission, 0.0, 5)
    admission.admit(0.0)
    in_time = admission.enter(demand(), 0.0, 1.0, lambda _: Fares(0.9, spares_prefill=True))[0]
    assert in_time.state == "admitted"
    with pytest.raises(Refusal, match=r"a wait of 0.00 s and 1.10 s for the prompt"):
        admission.enter(demand(), 0.0, 1.0, lambda _: Fares(1.1, spares_prefill=True))


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(1, 3), st.sampled_from("ab"), st.integers(1, 300), st.floats(0.05, 1.0)),
    max_size=60,
)
"""Gap, priority, tenant, prompt, seconds of service."""


@given(ARRIVALS, st.integers(1, 4))
def test_every_request_is_served_or_refused_once_and_waits_no_longer_than_is_allowed(
    arrivals: list[tuple[float, int, str, int, float]], servers: int
) -> None:
    """A server for each request in flight, whatever comes and when: all ends, and the sums are back at nothing."""
    admission, bound = make(Room(), max_requests=servers, max_queue_s=1.0), 1.0
    came: dict[Ticket, float] = {}
    ends: list[tuple[float, int, Ticket]] = []
    seconds: dict[Ticket, float] = {}
    served, expired, refused, now = [], [], 0, 0.0

    def pump() -> None:
        expired.extend(admission.expire(now))
        for ticket in admission.admit(now):
            assert now - came[ticket] <= bound
            ends.append((now + seconds[ticket], ticket.number, ticket))
            admission.booked(ticket)
        assert admission.in_flight == len(ends) <= servers

    def pass_time(until: float) -> None:
        nonlocal now
        while ends and min(ends)[0] <= until:
            end = min(ends)
            ends.remove(end)
            now = end[0]
            admission.leave(end[2])
            served.append(end[2])
            pump()
        now = until

    for gap, priority, tenant, prompt, takes in arrivals:
        pass_time(now + gap)
        try:
            ticket, _ = admission.enter(demand(prompt, priority=priority, tenant=tenant), now)
        except Refusal:
            refused += 1
            continue
        came[ticket], seconds[ticket] = now, takes
        pump()
    pass_time(now + 100.0)
    expired.extend(admission.expire(now))
    assert len(served) + len(expired) + refused == len(arrivals)
    assert {t.number for t in served}.isdisjoint(t.number for t in expired)
    assert not admission.queue
    assert admission.in_flight == 0
    assert admission._in_flight.tokens == admission._unbooked.tokens == admission._in_flight.blocks == 0
