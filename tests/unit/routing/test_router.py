"""From hashes and reports to workers, as an orchestrator and a simulated clock use it."""

from __future__ import annotations

import pytest

from tandem.deployment import Routing
from tandem.errors import TandemError
from tandem.kv.hashes import pack_hashes
from tandem.messages import BlocksStored, KvReport, Load, StageName
from tandem.routing.disaggregation import Waiting
from tandem.routing.room import AHEAD_S
from tandem.routing.router import EXPECTED_S, Plan, Route, Router
from tests.unit.routing.sites import BLOCK, BLOCKS, PREFILL_S, ask, info, join, make_router, measured, stored

PROMPT = list(range(1, 41))
"""Hashes of 40 blocks: 640 tokens, 0.64 s to read, 41 ms to move."""


def go(router: Router, hashes: list[int] = PROMPT, **options: float) -> tuple[Plan, Route]:
    plan = ask(router, hashes, **options)  # type: ignore[arg-type]
    route = router.commit(plan, options.get("now", 0.0))
    for stage in ("prefill", "decode"):
        route.sent(stage)  # type: ignore[arg-type]
    return plan, route


def test_a_new_prompt_is_taken_apart() -> None:
    plan = ask(make_router(), PROMPT)
    assert plan.verdict.way == "split"
    prefill, decode = plan.workers
    assert prefill in ("prefill_0", "prefill_1")
    assert decode in ("decode_0", "decode_1")
    assert plan.verdict.split is not None
    assert plan.verdict.split.prefill_s == pytest.approx(641 * PREFILL_S)
    assert plan.verdict.split.transfer_s == pytest.approx(0.041)


def test_it_goes_where_its_blocks_are() -> None:
    router = make_router(4)
    stored(router, "prefill_2", PROMPT[:30])
    for _ in range(20):
        assert ask(router, PROMPT).workers[0] == "prefill_2"
    assert ask(router, PROMPT).costs.uncached[2] == 641 - 30 * BLOCK


def test_of_a_whole_cached_prompt_the_last_token_is_still_read() -> None:
    router = make_router(1)
    stored(router, "prefill_0", PROMPT)
    assert ask(router, PROMPT, tokens=40 * BLOCK).costs.uncached.tolist() == [1.0, 640.0]


def test_a_choice_is_remembered_before_any_report() -> None:
    """Siblings that come at once find the prompt where the first one went; nobody else stays idle for it."""
    router = make_router(4, conditional_disaggregation=False)
    for number in range(4):
        router.report(f"prefill_{number}", 1, measured(), KvReport(first=1, events=[]))
    first = go(router)[0].workers[0]
    plan = ask(router, PROMPT)
    place = plan.names.index(str(first))
    assert plan.costs.uncached[place] == 1.0
    assert plan.workers[0] == first  # waiting for it and reading anew come to the same
    others = {go(router, [1000 * n + b for b in PROMPT])[0].workers[0] for n in range(1, 4)}
    assert others == {f"prefill_{n}" for n in range(4)} - {first}


def test_what_no_report_confirms_is_no_longer_believed() -> None:
    router = make_router(1)
    router.report("prefill_0", 1, measured(), KvReport(first=1, events=[]))
    go(router, now=100.0)
    assert ask(router, PROMPT, now=100.0 + EXPECTED_S - 1).costs.uncached[0] == 1.0
    assert ask(router, PROMPT, now=100.0 + EXPECTED_S).costs.uncached[0] == 641.0


def test_a_route_that_has_ended_leaves_nothing_behind() -> None:
    router = make_router(1)
    before = ask(router, PROMPT)
    route = go(router)[1]
    busy = ask(router, PROMPT)
    assert busy.prefill is not None
    assert before.prefill is not None
    assert busy.prefill.cost.total[0] > before.prefill.cost.total[0]
    route.first_token()
    route.released()
    route.end()
    route.end()
    after = ask(router, PROMPT)
    assert after.prefill is not None
    assert after.decode is not None
    assert before.decode is not None
    assert after.prefill.cost.total.tolist() == before.prefill.cost.total.tolist()
    assert after.decode.cost.total.tolist() == before.decode.cost.total.tolist()


def test_reports_say_what_to_ask_for_next() -> None:
    router = make_router(1)
    assert router.report("prefill_0", 1, measured(), None) == 1
    two = [BlocksStored(hashes=[1]), BlocksStored(hashes=[2])]
    assert router.report("prefill_0", 1, measured(), KvReport(first=1, events=list(two))) == 3
    assert router.report("prefill_0", 1, measured(), KvReport(first=5, events=list(two))) == 3
    join(router, "prefill_0", "prefill", epoch=2)
    assert router.report("prefill_0", 2, measured(), None) == 1


# ------------------------------------------------------------------ one worker for both stages


def test_a_prompt_that_decode_has_cached_stays_there() -> None:
    router = make_router(2)
    stored(router, "decode_1", PROMPT)
    plan = ask(router, PROMPT)
    assert plan.verdict.way == "whole"
    assert plan.workers == (None, "decode_1")


def test_it_does_not_where_that_would_hold_up_many_answers() -> None:
    router = make_router(1)
    stored(router, "decode_0", PROMPT[:38], running=30)  # 33 tokens to read, before 30 waiting answers
    stored(router, "prefill_0", PROMPT)
    assert ask(router, PROMPT).verdict.way == "split"


def test_a_long_queue_before_prefill_sends_prompts_to_decode() -> None:
    router = make_router(1)
    router.report("prefill_0", 1, measured(queued=9, queued_tokens=9000), None)
    assert ask(router, PROMPT).verdict.way == "whole"
    router.report("prefill_0", 1, measured(), None)
    assert ask(router, PROMPT).verdict.way == "split"


def test_a_request_that_would_wait_for_prefill_workers_is_done_whole_where_that_takes_less() -> None:
    router = make_router(1)
    router.report("decode_0", 1, measured(running=3), None)
    whole_s = 4 * 641 * PREFILL_S  # 641 tokens, and as long for three answers
    plan = ask(router, PROMPT, waiting=Waiting(0, whole_s / 2))
    assert not plan.is_whole
    assert not plan.spares_prefill
    plan = ask(router, PROMPT, waiting=Waiting(0, whole_s))
    assert plan.is_whole
    assert plan.spares_prefill
    assert plan.verdict.split is not None
    assert plan.verdict.split.gate_s == whole_s


def test_a_worker_that_reads_for_others_too_spares_nobody() -> None:
    """Where the worker for all of it is one that those who wait are waiting for."""
    alone = make_router(1)
    alone.lose("prefill_0")
    both = make_router(0)
    for name in ("both_0", "both_1"):
        both.add(name, "both")
        join(both, name, "both")  # type: ignore[arg-type]
    both.pair("both_0", "both_1")
    for router in (alone, both):
        plan = ask(router, PROMPT, waiting=Waiting(10, 100.0))
        assert plan.is_whole
        assert not plan.spares_prefill


def test_a_request_is_done_whole_where_that_holds_up_fewer() -> None:
    """Once prefill workers have as much to read as they take in advance, those who wait count against them."""
    router = make_router(1)
    router.report("decode_0", 1, measured(running=3), None)
    assert {ask(router, PROMPT, waiting=Waiting(others)).verdict.way for others in (0, 100)} == {"split"}
    router.report("prefill_0", 1, measured(running=3, queued_tokens=int(1.1 * AHEAD_S / PREFILL_S)), None)
    plans = {others: ask(router, PROMPT, waiting=Waiting(others)) for others in (0, 1, 100)}
    assert {others: plan.verdict.way for others, plan in plans.items()} == {0: "split", 1: "split", 100: "whole"}
    assert plans[1].verdict.split is not None
    assert plans[1].verdict.split.held_up_s == pytest.approx(641 * PREFILL_S)


def test_chance_among_near_ties_does_not_decide_the_way() -> None:
    """With a long answer, near-ties between decode workers differ by more than the prompt takes."""
    router = make_router(3)
    router.report("decode_0", 1, measured(running=2), None)
    plans = [ask(router, PROMPT[:5], answer=1000) for _ in range(100)]
    assert len({plan.workers[1] for plan in plans}) == 3
    assert {plan.verdict.way for plan in plans} == {"split"}


def test_guesses_do_not_decide_the_way() -> None:
    """As long as no worker has told how fast it reads prompts, requests are taken apart."""
    router = Router(Routing(), BLOCK, seed=1)
    stages: tuple[StageName, StageName] = ("prefill", "decode")
    for stage in stages:
        router.add(f"{stage}_0", stage)
        router.join(f"{stage}_0", info(f"{stage}_0", stage), Load())
    router.pair("prefill_0", "decode_0")
    router.report("decode_0", 1, Load(), KvReport(first=1, events=[BlocksStored(hashes=PROMPT)]))
    assert ask(router, PROMPT).verdict.way == "split"
    router.report("prefill_0", 1, Load(steps=1, prefill_steps=1, prefill_tokens=9, prefill_seconds=0.1), None)
    assert ask(router, PROMPT).verdict.way == "whole"


def test_it_can_be_switched_off() -> None:
    router = make_router(1, conditional_disaggregation=False)
    stored(router, "decode_0", PROMPT)
    plan = ask(router, PROMPT)
    assert plan.verdict.way == "split"
    assert plan.whole is None


def test_a_whole_request_counts_on_its_worker_until_it_ends() -> None:
    router = make_router(1)
    stored(router, "decode_0", PROMPT)
    plan, route = go(router)
    assert plan.verdict.way == "whole"
    later = ask(router, PROMPT)
    assert later.decode is not None
    assert plan.decode is not None
    assert later.decode.cost.total[1] > plan.decode.cost.total[1]
    route.end()
    assert ask(router, PROMPT).decode.cost.total[1] == plan.decode.cost.total[1]  # type: ignore[union-attr]


@pytest.mark.parametrize(("gone", "stays"), [("prefill", "decode"), ("decode", "prefill")])
def test_one_stage_does_the_work_of_a_stage_that_is_gone(gone: str, stays: str) -> None:
    router = make_router(2, conditional_disaggregation=False)
    router.lose(f"{gone}_0")
    assert ask(router, PROMPT).verdict.way == "split"
    router.lose(f"{gone}_1")
    plan = ask(router, PROMPT)
    assert plan.workers[0] is None
    assert plan.workers[1] in (f"{stays}_0", f"{stays}_1")
    assert plan.verdict.reason == "no pair of workers is ready"
    with pytest.raises(TandemError) as caught:
        router.plan(pack_hashes(PROMPT), 641, 50, 0.0, stand_in=False)
    assert caught.value.code == "worker_lost"
    assert f"no {gone} worker is ready (deployed: {gone}_0, {gone}_1)" in caught.value.message


def test_without_workers_there_is_no_plan() -> None:
    router = make_router(1)
    for name in ("prefill_0", "decode_0"):
        router.drain(name)
    with pytest.raises(TandemError, match="no prefill worker is ready"):
        ask(router, PROMPT)


def test_no_pair_no_split() -> None:
    """Workers that do not fit together each do whole requests."""
    router = make_router(1)
    router.lose("decode_0")
    router.join("decode_0", info("decode_0", "decode", 2), measured())
    assert ask(router, PROMPT).workers == (None, "decode_0")


def test_decode_goes_only_to_partners_of_the_prefill_worker() -> None:
    router = make_router(2, conditional_disaggregation=False)
    router.lose("decode_0")
    join(router, "decode_0", "decode", epoch=2)
    router.pair("decode_0", "prefill_1")
    router.report("decode_1", 1, measured(running=30, blocks_used=BLOCKS), None)
    for _ in range(20):
        assert ask(router, PROMPT).workers in (("prefill_1", "decode_0"), ("prefill_0", "decode_1"))


def test_a_year_of_rolling_restarts_leaves_nothing() -> None:
    router = make_router(2, conditional_disaggregation=False)
    _, route = go(router)
    for number in range(2, 500):
        router.remove(f"prefill_{number - 2}")
        router.add(f"prefill_{number}", "prefill")
        join(router, f"prefill_{number}", "prefill")
        for other in range(2):
            router.pair(f"prefill_{number}", f"decode_{other}")
        stored(router, f"prefill_{number}", [number])
    assert len(router._table.names) == 4
    assert len(router._places) == 4
    assert len(router._index) == 2
    assert router.own("prefill_499") == 0
    route.end()
    plan = ask(router, [499])
    assert plan.workers[0] == "prefill_499"
    assert plan.costs.uncached[plan.names.index("prefill_499")] == 1
    router.remove("prefill_499")
    assert "prefill_499" in plan.names


def test_what_was_chosen_is_counted_until_it_ends() -> None:
    router = make_router(1)
    _, route = go(router)
    assert (router.own("prefill_0"), router.own("decode_0")) == (1, 1)
    route.released()
    assert (router.own("prefill_0"), router.own("decode_0")) == (0, 1)
    route.end()
    assert router.own("decode_0") == 0


def test_no_workers_at_all() -> None:
    with pytest.raises(TandemError, match=r"no prefill worker is ready \(deployed: none\)"):
        ask(Router(Routing(), 16, 0), PROMPT)


def test_workers_that_are_avoided_get_nothing() -> None:
    router = make_router(2, conditional_disaggregation=False)
    for _ in range(5):
        plan = ask(router, [1], avoid=["prefill_0", "decode_1", "nobody"])
        router.commit(plan, 0.0)
        assert plan.workers == ("prefill_1", "decode_0")
    assert ask(router, [1], avoid=["decode_0", "decode_1", "prefill_1"]).workers == (None, "prefill_0")
    with pytest.raises(TandemError, match="no prefill worker is ready"):
        ask(router, [1], avoid=["decode_0", "decode_1", "prefill_0", "prefill_1"])


def test_a_worker_that_was_drained_may_be_resumed() -> None:
    router = make_router(1, conditional_disaggregation=False)
    router.drain("decode_0")
    assert ask(router, [1]).workers == (None, "prefill_0")
    router.resume("decode_0")
    assert ask(router, [1]).workers == ("prefill_0", "decode_0")
