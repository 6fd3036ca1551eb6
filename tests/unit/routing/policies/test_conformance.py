"""What every routing policy must do."""

from __future__ import annotations

from collections import Counter
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.deployment import Routing
from tandem.routing.disaggregation import Task
from tandem.routing.policies.base import Candidates, Choice, Policy
from tandem.routing.policies.registry import POLICIES, make_policy
from tandem.routing.table import WorkerTable
from tests.unit.routing.sites import make_costs, make_table, measured

EACH = 6
TASKS: list[Task] = ["prefill", "decode", "generate"]
every_policy = pytest.mark.parametrize("name", list(POLICIES))
every_task = pytest.mark.parametrize("task", TASKS)


def make(name: str, seed: int = 1) -> Policy:
    return make_policy(Routing(policy=name), seed)  # type: ignore[arg-type]


def choose(policy: Policy, table: WorkerTable, task: Task, cached: dict[int, int] | None = None) -> Choice:
    bar = table.bar("prefill" if task == "prefill" else "decode")
    assert bar is not None
    return policy.choose(Candidates(task, table, bar, make_costs(table, cached=cached)))


def test_a_deployment_can_name_every_policy_and_no_other() -> None:
    assert set(get_args(get_type_hints(Routing)["policy"])) == set(POLICIES)


@every_policy
@every_task
@settings(max_examples=30)
@given(data=st.data())
def test_only_workers_of_the_stage_that_take_work_are_chosen(name: str, task: Task, data: st.DataObject) -> None:
    table, policy = make_table(EACH), make(name)
    places = range(EACH) if task == "prefill" else range(EACH, 2 * EACH)
    gone = data.draw(st.sets(st.sampled_from(places), max_size=EACH - 1))
    for place in gone:
        if data.draw(st.booleans()):
            table.lose(place)
        else:
            table.drain(place)
    for place in data.draw(st.lists(st.sampled_from(places), max_size=20)):
        table.book(place, data.draw(st.integers(0, 5000)), data.draw(st.integers(0, 400)))
    cached = data.draw(st.dictionaries(st.integers(0, 2 * EACH - 1), st.integers(0, 159)))
    for _ in range(EACH):
        choice = choose(policy, table, task, cached)
        assert choice.place in set(places) - gone
        assert choice.reason
        assert choice.cost.total.shape == (2 * EACH,)


@every_policy
@every_task
def test_the_same_seed_gives_the_same_choices(name: str, task: Task) -> None:
    table = make_table(EACH)
    one, other = make(name, 7), make(name, 7)
    choices = [choose(one, table, task).place for _ in range(50)]
    assert choices == [choose(other, table, task).place for _ in range(50)]


@every_policy
@every_task
def test_equal_workers_get_about_the_same(name: str, task: Task) -> None:
    table, policy = make_table(EACH), make(name)
    counts = Counter(choose(policy, table, task).place for _ in range(100 * EACH))
    assert len(counts) == EACH
    assert min(counts.values()) > 50
    assert max(counts.values()) < 150


@every_policy
@every_task
def test_routers_of_other_seeds_begin_elsewhere(name: str, task: Task) -> None:
    """So that many of them, each with one request, do not meet on one worker."""
    table = make_table(EACH)
    assert len({choose(make(name, seed), table, task).place for seed in range(60)}) == EACH


@every_policy
@every_task
def test_nobody_starves_while_work_is_counted(name: str, task: Task) -> None:
    """Choices add up to work in hand, and none ends: all get some, whoever had some to begin with."""
    table, policy = make_table(EACH), make(name)
    first = 0 if task == "prefill" else EACH
    for _ in range(3):
        table.book(first, 160, 10)
    counts: Counter[int] = Counter()
    for _ in range(20 * EACH):
        place = choose(policy, table, task).place
        counts[place] += 1
        table.book(place, 160 if task != "decode" else 0, 10)
    assert set(counts) == set(range(first, first + EACH))
    assert min(counts.values()) >= 8


@every_policy
def test_the_only_worker_gets_everything(name: str) -> None:
    table, policy = make_table(1), make(name)
    table.report(0, measured(queued=500, queued_tokens=10**6, blocks_used=1000))
    assert {choose(policy, table, "prefill").place for _ in range(5)} == {0}
