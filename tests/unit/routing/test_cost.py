"""What a request costs where."""

from __future__ import annotations

import pytest

from tandem.routing.disaggregation import Task
from tests.unit.routing.sites import BATCH, BLOCKS, PREFILL_S, STEP_S, make_costs, make_table, measured


def test_prefill_is_the_wait_and_what_is_not_cached() -> None:
    table = make_table(2)
    cost = make_costs(table, tokens=160, cached={0: 100}).of("prefill")
    assert cost.total[:2].tolist() == pytest.approx([60 * PREFILL_S, 160 * PREFILL_S])
    table.book(0, 40, 3)
    cost = make_costs(table, tokens=160, cached={0: 100}).of("prefill")
    assert cost.parts["wait"][:2].tolist() == pytest.approx([40 * PREFILL_S, 0.0])
    assert cost.parts["prefill"][:2].tolist() == pytest.approx([60 * PREFILL_S, 160 * PREFILL_S])


def test_reading_holds_up_those_who_come_after_it_where_workers_are_busy() -> None:
    table = make_table(4)
    table.drain(3)
    for place, busy in enumerate((1, 2, 3)):
        table.book(place, 10, 0)
        cost = make_costs(table, cached={0: 100}).of("prefill")
        assert cost.parts["held up"][:2].tolist() == pytest.approx(
            [busy / 3 * 60 * PREFILL_S, busy / 3 * 160 * PREFILL_S]
        )


def test_blocks_that_give_way_cost_reading_them_again_as_likely_as_they_are_asked_for() -> None:
    cost = make_costs(make_table(2), cached={0: 100}, chances={0: 0.5, 1: 0.25}).of("prefill")
    assert cost.parts["lost blocks"][:2].tolist() == pytest.approx([0.5 * 60 * PREFILL_S, 0.25 * 160 * PREFILL_S])


def test_decode_is_the_steps_and_what_they_do_to_others() -> None:
    table = make_table(1)
    cost = make_costs(table, answer=50).of("decode")
    assert cost.parts["steps"][1] == pytest.approx(50 * STEP_S)
    assert cost.parts["crowding"][1] == pytest.approx(50 * STEP_S / BATCH)
    assert cost.total[1] == pytest.approx(50 * STEP_S * (1 + 1 / BATCH))


@pytest.mark.parametrize("task", ["prefill", "decode", "generate"])
def test_parts_add_up(task: Task) -> None:
    table = make_table(2)
    for place in range(4):
        table.report(
            place, measured(queued=place, running=20 * place, queued_tokens=99, blocks_used=BLOCKS - 4 * place)
        )
    cost = make_costs(table, cached={1: 32, 3: 48}, chances={0: 0.3}).of(task)
    assert sum(cost.parts.values()).tolist() == pytest.approx(cost.total.tolist())  # type: ignore[union-attr]
    assert "room" in cost.parts


def test_more_in_hand_never_costs_less() -> None:
    table = make_table(1)
    last = 0.0
    for _ in range(2 * BATCH):
        now = float(make_costs(table).of("decode").total[1])
        assert now > last
        last = now
        table.book(1, 0, 20)


def test_reading_a_prompt_beside_answers_costs_what_they_lose() -> None:
    table = make_table(1)
    alone = make_costs(table, tokens=100).of("generate").parts["stall"][1]
    table.report(1, measured(running=10))
    beside = make_costs(table, tokens=100).of("generate").parts["stall"][1]
    assert (alone, beside) == pytest.approx((100 * PREFILL_S, 10 * 100 * PREFILL_S))


def test_costs_stay_what_they_were_when_workers_go_on() -> None:
    table = make_table(1)
    costs = make_costs(table)
    before = {task: costs.of(task).total.tolist() for task in ("prefill", "decode", "generate")}
    parts = costs.of("generate").parts["wait"].tolist()
    table.book(0, 1000, 100)
    table.book(1, 1000, 100)
    assert {task: costs.of(task).total.tolist() for task in ("prefill", "decode", "generate")} == before
    assert costs.of("generate").parts["wait"].tolist() == parts
