"""Which of two workers keeps the KV of a request."""

from __future__ import annotations

from collections import Counter

import pytest

from tandem.messages import StageName
from tandem.routing.explain import explain, one_line
from tandem.routing.keeping import REFRESH_S, Keeping
from tandem.routing.router import Router
from tests.unit.routing.sites import BLOCKS, ask, make_router, make_table, measured

PROMPT = list(range(1, 11))


def draw(used: dict[StageName, int], count: int = 2000) -> Counter[StageName]:
    """Who keeps so many prompts where workers of a stage hold so many blocks."""
    table, keeping = make_table(1), Keeping(1)
    table.report(0, measured(blocks_used=used["prefill"]))
    table.report(1, measured(blocks_used=used["decode"]))
    return Counter(keeping.draw(table, 0.0) for _ in range(count))


@pytest.mark.parametrize(("free_in_prefill", "free_in_decode"), [(1, 1), (3, 1), (1, 4)])
def test_each_stage_keeps_as_much_as_it_has_room_for(free_in_prefill: int, free_in_decode: int) -> None:
    tenth = BLOCKS // 10
    drawn = draw({"prefill": BLOCKS - free_in_prefill * tenth, "decode": BLOCKS - free_in_decode * tenth})
    share = free_in_decode / (free_in_prefill + free_in_decode)
    assert drawn["decode"] / drawn.total() == pytest.approx(share, abs=0.05)


def test_a_stage_that_is_full_keeps_nothing() -> None:
    assert draw({"prefill": 0, "decode": BLOCKS})["decode"] == 0
    assert draw({"prefill": BLOCKS, "decode": 0})["prefill"] == 0


def test_what_has_changed_counts_after_a_while() -> None:
    table, keeping = make_table(1), Keeping(1)
    table.report(0, measured(blocks_used=BLOCKS))
    assert keeping.draw(table, 0.0) == "decode"
    table.report(0, measured())
    table.report(1, measured(blocks_used=BLOCKS))
    assert keeping.draw(table, 0.9 * REFRESH_S) == "decode"
    assert keeping.draw(table, REFRESH_S) == "prefill"


def keepers(router: Router) -> set[StageName | None]:
    return {ask(router, PROMPT).keeper for _ in range(50)}


def test_one_of_two_workers_keeps_a_prompt() -> None:
    router = make_router(conditional_disaggregation=False)
    assert keepers(router) == {"prefill", "decode"}
    plan = ask(router, PROMPT)
    assert {plan.keeps("prefill"), plan.keeps("decode")} == {True, False}


def test_a_worker_that_does_both_keeps_it() -> None:
    router = make_router()
    for number in range(2):
        router.drain(f"prefill_{number}")
    plan = ask(router, PROMPT)
    assert plan.keeper is None
    assert plan.keeps("decode")


@pytest.mark.parametrize("routing", [{"lending": False}, {"policy": "least_loaded"}])
def test_where_nobody_lends_each_keeps_for_itself(routing: dict[str, object]) -> None:
    assert keepers(make_router(conditional_disaggregation=False, **routing)) == {None}


def test_the_keeper_is_told_of() -> None:
    plan = ask(make_router(conditional_disaggregation=False), PROMPT)
    assert explain(plan).keeper == plan.keeper
    assert f"; kept in {plan.keeper}" in one_line(plan)
