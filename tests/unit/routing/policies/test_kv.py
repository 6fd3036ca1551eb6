"""Policy kv: what a cache hit is worth, and what it is not."""

from __future__ import annotations

from collections import Counter

import pytest

from tandem.messages import Load
from tandem.routing.disaggregation import Task
from tandem.routing.policies.base import Candidates, Choice
from tandem.routing.policies.kv import KvPolicy
from tandem.routing.table import WorkerTable
from tests.unit.routing.sites import BATCH, BLOCKS, PREFILL_S, make_costs, make_table, measured

SPREAD = 0.1


def choose(
    table: WorkerTable, task: Task, seed: int = 1, cached: dict[int, int] | None = None, tokens: int = 160
) -> Choice:
    bar = table.bar("prefill" if task == "prefill" else "decode")
    assert bar is not None
    return KvPolicy(seed, SPREAD).choose(Candidates(task, table, bar, make_costs(table, cached=cached, tokens=tokens)))


def shares(table: WorkerTable, task: Task, cached: dict[int, int] | None = None) -> dict[int, float]:
    """Which part of the requests each worker gets, over many seeds."""
    counts = Counter(choose(table, task, seed, cached).place for seed in range(400))
    return {place: count / 400 for place, count in counts.items()}


def test_the_worker_that_holds_the_prompt_is_chosen() -> None:
    assert shares(make_table(3), "prefill", {1: 96}) == {1: 1.0}


def test_a_little_cache_is_not_given_up_for_the_sake_of_chance() -> None:
    """Costs differ by less than the spread, but one would have more to read."""
    assert shares(make_table(3), "prefill", {1: 10, 2: 10}).keys() == {1, 2}


@pytest.mark.parametrize(("waiting", "chosen"), [(0, 0), (143, 0), (170, 1), (1000, 1)])
def test_a_hit_is_worth_what_it_saves_and_no_more(waiting: int, chosen: int) -> None:
    """96 cached tokens on a worker with so many tokens before them, beside an idle worker that holds nothing. One of
    two workers is busy, so that whatever is read holds up half as much again."""
    table = make_table(2)
    table.book(0, waiting, 0)
    assert shares(table, "prefill", {0: 96}) == {chosen: 1.0}


def test_an_idle_worker_does_not_stand_by_while_others_pile_up() -> None:
    """All ask for one cached prompt: its holder gets so many that the wait is as long as the reading and what that
    holds up, not more."""
    table = make_table(3)
    for seed in range(60):
        place = choose(table, "prefill", seed, {0: 150}).place
        table.book(place, 10 if place == 0 else 160, 0)
    waits = table.wait_s[:3]
    assert waits.min() > 0
    assert waits.max() - waits.min() <= 2 * 160 * PREFILL_S


def test_a_new_prompt_goes_where_blocks_of_the_least_worth_give_way() -> None:
    table = make_table(3)
    bar = table.bar("prefill")
    assert bar is not None
    costs = make_costs(table, chances={0: 0.5, 1: 0.1, 2: 0.4})
    places = {KvPolicy(seed, SPREAD).choose(Candidates("prefill", table, bar, costs)).place for seed in range(50)}
    assert places == {1}


def test_a_faster_worker_gets_more() -> None:
    table = make_table(2)
    for _ in range(2):  # measured long enough to count
        table.report(1, measured(prefill_steps=1010, prefill_tokens=101_000, prefill_seconds=26.0, step_seconds=50.0))
    counts: Counter[int] = Counter()
    for seed in range(100):
        place = choose(table, "prefill", seed).place
        counts[place] += 1
        table.book(place, 160, 0)
    assert counts[1] > 2 * counts[0]


def test_near_ties_are_shared_and_the_cheaper_gets_more() -> None:
    table = make_table(2)
    table.book(0, 10, 0)
    parts = shares(table, "prefill")
    assert 0.1 < parts[0] < 0.4
    assert parts[1] > 0.6


def test_clear_differences_are_not_left_to_chance() -> None:
    table = make_table(2)
    table.book(0, 100, 0)
    assert shares(table, "prefill") == {1: 1.0}


def test_decode_goes_where_fewer_sequences_run() -> None:
    table = make_table(2)
    table.report(2, measured(running=16))
    assert shares(table, "decode") == {3: 1.0}


def test_decode_goes_where_there_is_room() -> None:
    table = make_table(2)
    table.report(2, measured(blocks_used=BLOCKS - 5))
    assert shares(table, "decode") == {3: 1.0}
    assert "room" in choose(table, "decode").cost.parts


def test_a_full_batch_is_a_wait() -> None:
    table = make_table(2)
    table.report(2, measured(running=BATCH, queued=4))
    table.report(3, measured(running=BATCH - 4, blocks_used=BLOCKS // 2))
    assert shares(table, "decode") == {3: 1.0}


def test_no_decode_worker_starves_after_it_was_measured_under_load() -> None:
    """Steps were slow in a full batch; they are not expected to be so in an empty one."""
    table = make_table(2)
    slow = measured(running=BATCH, steps=1110, step_seconds=1.0 + 2.0 + 40.0)
    table.report(2, slow)
    table.report(2, Load(**{f: getattr(slow, f) for f in slow.__struct_fields__} | {"running": 0}))
    table.report(3, measured(running=BATCH // 2, steps=1110, step_seconds=1.0 + 2.0 + 30.0))
    assert shares(table, "decode") == {2: 1.0}


def test_several_routers_that_hear_late_of_each_other_do_not_herd() -> None:
    """Eight routers with a table each; what all did they hear only after each has chosen. No worker ever has more than
    a round's requests ahead of another."""
    workers, routers = 4, 8
    tables = [make_table(workers) for _ in range(routers)]
    policies = [KvPolicy(seed, SPREAD) for seed in range(routers)]
    totals = dict.fromkeys(range(workers), 0)
    for number in range(40):
        for table, policy in zip(tables, policies, strict=True):
            bar = table.bar("prefill")
            assert bar is not None
            place = policy.choose(Candidates("prefill", table, bar, make_costs(table))).place
            table.book(place, 160, 10).send()
            totals[place] += 1
        if number == 0:
            assert max(totals.values()) < routers  # the first ones, all alike, do not go to one worker
        assert max(totals.values()) - min(totals.values()) <= routers
        for place, total in totals.items():
            for table in tables:
                table.report(place, measured(queued=total, queued_tokens=160 * total))
