"""KV memory that carries all prompts, but not all answers to their ends: some give way, and no answer shows it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tandem.messages import EngineEvent, Finished, Generate, Preempted
from tests.unit.engines.conformance.conftest import Pair, introduce
from tests.unit.engines.conformance.harness import Harness, as_decode, as_prefill, handle_of, make_work, tokens_of
from tests.unit.engines.conformance.subjects import Subject

ANSWER = 150
BLOCKS = 100
"""An answer and its prompt take 43 of them."""


def make_requests(name: str) -> list[Generate]:
    rng = random.Random(name)
    sampling = [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 0.8, "seed": 8, "frequency_penalty": 0.5}]
    return [
        make_work(f"{name}-{i}", [rng.randrange(400) for _ in range(20)], ANSWER, **sampling[i % 3]) for i in range(6)
    ]


def check(tight: Harness, events: list[list[EngineEvent]]) -> int:
    """How often one gave way. What was told of each is told once, and nothing is left."""
    ends = [e[-1] for e in events]
    assert all(isinstance(end, Finished) and (end.reason, end.cached_tokens) == ("length", 0) for end in ends)
    count = sum(isinstance(event, Preempted) for e in events for event in e)
    load = tight.until_idle()
    assert (load.blocks_used, load.blocks_wanted) == (0, 0)
    return count


def test_answers_are_those_of_ample_memory(pair: Pair, start: Callable[..., Harness], subject: Subject) -> None:
    """Both stages in one engine, then after a hand-over; with sampling and penalties."""
    if not subject.moves_kv_itself:
        pytest.skip("the engine's library schedules")
    tight = start("both_0", blocks=BLOCKS)
    introduce(pair.prefill, tight)
    work = make_requests("whole")
    expected = [tokens_of(events) for events in pair.decode.run(*work)]
    events = tight.run(*work)
    assert [tokens_of(e) for e in events] == expected
    first = check(tight, events)

    work = make_requests("apart")
    expected = [tokens_of(events) for events in pair.decode.run(*work)]
    begun = pair.prefill.run(*(as_prefill(w) for w in work))
    decodes = [as_decode(w, tokens_of(b), handle_of(b)) for w, b in zip(work, begun, strict=True)]
    events = tight.run(*decodes)
    assert [tokens_of(b) + tokens_of(e, start=1) for b, e in zip(begun, events, strict=True)] == expected
    second = check(tight, events)
    assert min(first, second) > 0
    assert tight.load.preemptions == first + second
    assert pair.prefill.until_idle().handles_held == 0
