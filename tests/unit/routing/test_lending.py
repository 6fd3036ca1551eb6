"""Who lends what to the worker that was chosen for prefill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import KvReport
from tandem.routing.explain import explain, one_line
from tandem.routing.lending import LEAST_GAIN_S, Offer
from tandem.routing.router import Plan, Router
from tests.unit.routing.sites import BLOCK, PREFILL_S, ask, make_costs, make_router, make_table, measured, stored

PROMPT = list(range(1, 41))
"""Hashes of 40 blocks of 16 tokens: a token takes 1 ms to be read, and 1/16 ms to come from elsewhere."""


def make(each: int = 2, **routing: object) -> Router:
    """Workers that are all paired with each other."""
    router = make_router(each, **routing)
    for one in range(each):
        for other in range(one + 1, each):
            router.pair(f"prefill_{one}", f"prefill_{other}")
    return router


def ask_busy(router: Router, busy: str, prompt: list[int] = PROMPT) -> Plan:
    """Plan a prompt while a worker has so much to read that others are cheaper."""
    router.report(busy, 1, measured(queued=9, queued_tokens=100_000), None)
    return ask(router, prompt)


def test_a_worker_borrows_what_a_busy_one_holds() -> None:
    router = make()
    stored(router, "prefill_0", PROMPT)
    plan = ask_busy(router, "prefill_0")
    assert plan.workers[0] == "prefill_1"
    assert plan.loan == ("prefill_0", 640)
    place = plan.names.index("prefill_1")
    assert plan.costs.uncached[place] == 641
    assert plan.costs.to_read[place] == pytest.approx(1 + 640 / BLOCK)
    held_up = 1.5  # one of two is busy
    assert plan.first_token_s == pytest.approx(held_up * PREFILL_S * (1 + 640 / BLOCK))


def test_decode_lends_what_it_has_written() -> None:
    """The next turn of a conversation: prefill knows the last prompt, decode the answer too."""
    router = make(1, conditional_disaggregation=False)
    stored(router, "prefill_0", PROMPT[:20])
    stored(router, "decode_0", PROMPT)
    plan = ask(router, PROMPT)
    assert plan.workers == ("prefill_0", "decode_0")
    assert plan.loan == ("decode_0", 640)
    route = router.commit(plan, 0.0)
    assert route.prefill is not None
    table = router._table
    assert table.wait_s[0] == pytest.approx(PREFILL_S * 21)  # 1 to read, 320 that take as long as 20
    route.end()
    assert table.wait_s[0] == 0.0


def test_of_a_whole_prompt_the_last_block_is_read() -> None:
    router = make()
    stored(router, "prefill_0", PROMPT)
    router.report("prefill_0", 1, measured(queued=9, queued_tokens=100_000), None)
    assert ask(router, PROMPT, tokens=640).loan == ("prefill_0", 624)


def test_who_holds_as_much_borrows_nothing() -> None:
    router = make()
    stored(router, "prefill_0", PROMPT)
    stored(router, "prefill_1", PROMPT)
    assert ask(router, PROMPT).loan is None


def test_a_little_is_not_worth_the_question() -> None:
    block_s = PREFILL_S * (BLOCK - 1)  # gained by each
    assert block_s < LEAST_GAIN_S < 2 * block_s
    for count, lends in ((1, False), (2, True)):
        router = make()
        stored(router, "prefill_0", PROMPT[:count])
        assert (ask_busy(router, "prefill_0").loan is not None) == lends


def test_what_is_about_to_be_computed_is_not_lent_yet() -> None:
    router = make(conditional_disaggregation=False)
    for number in range(2):
        router.report(f"prefill_{number}", 1, measured(), KvReport(first=1, events=[]))
    first = ask(router, PROMPT)
    router.commit(first, 0.0)
    holder = str(first.workers[0])
    assert ask_busy(router, holder).loan is None
    stored(router, holder, PROMPT[:30], queued=9, queued_tokens=100_000)
    assert ask_busy(router, holder).loan == (holder, 480)


def test_only_who_is_paired_lends() -> None:
    router = make_router(2)
    stored(router, "prefill_0", PROMPT)
    assert ask_busy(router, "prefill_0").loan is None


@pytest.mark.parametrize("routing", [{"lending": False}, {"policy": "least_loaded"}, {"policy": "round_robin"}])
def test_it_can_be_switched_off_and_others_do_without(routing: dict[str, object]) -> None:
    router = make(**routing)
    stored(router, "prefill_0", PROMPT)
    plan = ask_busy(router, "prefill_0")
    assert plan.loan is None
    assert plan.costs.to_read.tolist() == plan.costs.uncached.tolist()


def test_where_kv_comes_slower_than_it_is_computed_nothing_is_borrowed() -> None:
    router = make()
    slow = {"bytes_pulled": 2 * 10**9, "pull_seconds": 1000.0}
    for name in ("prefill_0", "prefill_1", "decode_0", "decode_1"):
        router.report(name, 1, measured(**slow), None)
    stored(router, "prefill_0", PROMPT, **slow)
    router.report("prefill_0", 1, measured(queued=9, queued_tokens=100_000, **slow), None)
    assert ask(router, PROMPT).loan is None


def test_the_lender_is_told_of() -> None:
    router = make()
    stored(router, "prefill_0", PROMPT)
    plan = ask_busy(router, "prefill_0")
    told = explain(plan)
    assert (told.lender, told.lent_tokens) == ("prefill_0", 640)
    assert ", 0 of 641 tokens cached and 640 held by prefill_0, which lends them; decode on" in one_line(plan)


@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.0, 0.99), st.integers(0, 500))
def test_borrowing_never_costs_more_than_reading(tokens: int, offered: int, share: float, held: int) -> None:
    """And it is what is read, and what comes from elsewhere at its price."""
    offer = Offer(place=0, tokens=min(offered, tokens), share=share)
    costs = make_costs(make_table(1), tokens=tokens, cached={0: held}, lent_tokens=offer.tokens, lent_share=share)
    uncached, left = costs.uncached.item(0), costs.to_read.item(0)
    assert uncached == max(1, tokens - held)
    lent = max(0.0, uncached - (tokens - offer.tokens))
    assert left == pytest.approx(uncached - lent + share * lent)
    assert offer.gain(uncached, tokens) <= uncached - left + 1e-9
