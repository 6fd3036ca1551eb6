"""The tables of ``tandem explain``."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tandem.cli.explain import table
from tandem.routing.explain import explain
from tests.unit.routing.sites import ask, make_router, stored

PROMPT = list(range(1, 41))


@pytest.mark.parametrize("policy", ["kv", "least_loaded"])
def test_every_candidate_has_a_row_and_the_chosen_one_a_mark(policy: str) -> None:
    router = make_router(3, policy=policy)
    stored(router, "prefill_1", PROMPT[:20])
    for choice in explain(ask(router, PROMPT)).choices:
        text = io.StringIO()
        Console(file=text, width=120).print(table(choice))
        rows = [line.split() for line in text.getvalue().splitlines() if "_" in line]
        assert {row[0] for row in rows} == {candidate.worker for candidate in choice.candidates}
        assert [row[0] for row in rows if row[-1] == "◄"] == [choice.worker]
        if choice.task == "prefill" and policy == "kv":
            # 321 tokens to read, 1 ms each; nothing waits, is held up, or gives way
            assert rows[0] == ["prefill_1", "320", "0.0", "321.0", "0.0", "0.0", "321.0", "◄"]
