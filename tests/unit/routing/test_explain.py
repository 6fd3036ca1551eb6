"""A decision in words and figures."""

from __future__ import annotations

import msgspec
import pytest

from tandem.routing.explain import explain, one_line
from tandem.routing.explanation import Explanation
from tests.unit.routing.sites import ask, make_router, stored

PROMPT = list(range(1, 41))


def test_everything_that_was_weighed_is_told() -> None:
    router = make_router(3)
    stored(router, "prefill_1", PROMPT[:20])
    router.drain("prefill_2")
    told = msgspec.json.decode(msgspec.json.encode(explain(ask(router, PROMPT))), type=Explanation)
    assert (told.policy, told.way, told.prompt_tokens) == ("kv", "split", 641)
    prefill, decode, whole = told.choices
    assert (prefill.task, prefill.worker, prefill.unit) == ("prefill", "prefill_1", "seconds")
    assert [c.worker for c in prefill.candidates] == ["prefill_0", "prefill_1"]
    assert [c.cached_tokens for c in prefill.candidates] == [0, 320]
    for choice in told.choices:
        for candidate in choice.candidates:
            assert sum(candidate.parts.values()) == pytest.approx(candidate.cost)
    assert (decode.task, whole.task) == ("decode", "generate")
    assert len(decode.candidates) == len(whole.candidates) == 3


@pytest.mark.parametrize("policy", ["kv", "least_loaded", "power_of_two", "round_robin", "random"])
def test_one_line_says_who_and_why(policy: str) -> None:
    router = make_router(2, policy=policy)
    plan = ask(router, PROMPT)
    line = one_line(plan)
    for name in plan.workers:
        assert str(name) in line
    assert plan.verdict.reason in line
    assert "of 641 tokens cached" in line
    assert "\n" not in line
    assert explain(plan).choices[0].reason in line


def test_one_line_of_a_whole_request() -> None:
    router = make_router(1)
    stored(router, "decode_0", PROMPT)
    line = one_line(ask(router, PROMPT))
    assert line.startswith("generate on decode_0: least cost, ")
    assert "640 of 641 tokens cached; whole: " in line
