"""The queue, held to what it promises whatever comes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.orchestrator.fair_queue import FairQueue


class One(NamedTuple):
    """A request that waits."""

    number: int
    priority: int
    tenant: str
    cost: int


ONES = st.builds(One, st.just(0), st.integers(1, 3), st.sampled_from("abcd"), st.integers(1, 50))
ACTS = st.lists(st.one_of(ONES, st.just("pop"), st.just("head"), st.integers(0, 1000)), max_size=80)
"""A request comes, the first one is taken, or looked at, or one somewhere leaves."""


def fill(*ones: One) -> FairQueue[One]:
    queue = FairQueue[One]()
    for one in ones:
        queue.add(one)
    return queue


@given(ACTS)
def test_nothing_is_lost_and_nothing_comes_twice_whatever_happens(acts: list[One | str | int]) -> None:
    queue, inside, came = FairQueue[One](), list[One](), 0
    for act in acts:
        if isinstance(act, One):
            inside.append(act._replace(number=came))
            queue.add(inside[-1])
            came += 1
        elif not inside:
            assert queue.head() is None
            with pytest.raises(IndexError):
                queue.pop()
        elif isinstance(act, int):
            queue.remove(inside.pop(act % len(inside)))
        else:
            head = queue.head()
            assert head in inside
            assert head == queue.head()
            assert head.priority == min(one.priority for one in inside)
            mine = [one for one in inside if (one.priority, one.tenant) == (head.priority, head.tenant)]
            assert head == mine[0]  # a tenant's own requests stay in order
            if act == "pop":
                assert queue.pop() == head
                inside.remove(head)
        assert len(queue) == len(inside)
        assert sorted(queue) == sorted(inside)
        assert sum(count for *_, count in queue.counts()) == len(inside)


@given(st.dictionaries(st.sampled_from("abcde"), st.lists(st.integers(1, 100), min_size=30, max_size=60), min_size=2))
def test_while_all_have_something_waiting_none_gets_ahead(costs: dict[str, list[int]]) -> None:
    """At any time tenants differ by less than a turn and what it may leave; so nobody starves."""
    queue = fill(*(One(n, 1, tenant, cost) for tenant, each in costs.items() for n, cost in enumerate(each)))
    left = {tenant: len(each) for tenant, each in costs.items()}
    largest = max(max(each) for each in costs.values())
    served = Counter(dict.fromkeys(costs, 0))
    while all(left.values()):
        one = queue.pop()
        served[one.tenant] += one.cost
        left[one.tenant] -= 1
        assert max(served.values()) - min(served.values()) < 3 * largest


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 40))
def test_what_is_foretold_to_come_before_a_request_comes_before_it(costs: list[int], mine: int) -> None:
    """A light tenant among heavy ones: what is served before it is what was foretold, give or take a turn."""
    queue = fill(*(One(n, 1, tenant, cost) for tenant in "ab" for n, cost in enumerate(costs)))
    foretold = queue.cost_before(1, "light", mine)
    queue.add(last := One(99, 1, "light", mine))
    before = 0
    while (one := queue.pop()) is not last:
        before += one.cost
    assert abs(before - foretold) <= 2 * 3 * max(*costs, mine)


@given(st.lists(st.integers(1, 40), min_size=40, max_size=40), st.lists(st.integers(1, 40), max_size=10))
def test_what_is_served_outside_the_queue_is_paid_for_in_it(costs: list[int], outside: list[int]) -> None:
    """Its tenant's next request comes as much later, and that is foretold."""
    queue = fill(*(One(n, 1, "other", cost) for n, cost in enumerate(costs)), first := One(98, 1, "owes", 5))
    for cost in outside:
        queue.charge(One(0, 1, "owes", cost))
    foretold = queue.cost_before(1, "owes", 5)
    queue.add(last := One(99, 1, "owes", 5))
    served = []
    while (one := queue.pop()) is not last:
        served.append(one)
    others = sum(one.cost for one in served if one is not first)
    assert others >= min(sum(costs), sum(outside)) - 3 * 40
    assert abs(sum(one.cost for one in served) - foretold) <= 3 * 40


def test_a_higher_priority_goes_first_and_leaves_the_turns_of_the_others_alone() -> None:
    queue = fill(One(0, 5, "a", 10), One(1, 5, "b", 10))
    assert queue.head() == One(0, 5, "a", 10)
    queue.add(One(2, 1, "c", 1000))
    assert [queue.pop().number for _ in range(3)] == [2, 0, 1]


def test_a_large_request_is_not_passed_over_by_small_ones_of_its_tenant() -> None:
    queue = fill(One(0, 1, "a", 1000), *(One(n, 1, "b", 1) for n in range(1, 2000)))
    numbers = [queue.pop().number for _ in range(1001)]
    assert 0 in numbers


def test_the_least_claim_is_that_of_the_largest_backlog_in_the_lowest_priority() -> None:
    queue = fill(One(0, 1, "a", 500), One(1, 5, "a", 5), One(2, 5, "b", 3), One(3, 5, "b", 3))
    assert queue.least() == One(3, 5, "b", 3)
    assert queue.backlog(5, "b") == 6
    assert queue.backlog(5, "x") == queue.backlog(7, "a") == 0
