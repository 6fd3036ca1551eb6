"""A cancelled request ends, wherever it is, and nothing of it is left."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tandem.messages import Finished, Prefilled, Tokens
from tests.unit.engines.conformance.conftest import Pair
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    handle_of,
    make_work,
    reason_of,
    tokens_of,
)
from tests.unit.engines.conformance.subjects import Subject


def test_in_the_queue(start: Callable[..., Harness]) -> None:
    """A handle holds nearly all blocks, and a prompt waits for them: it ends without a token, and the handle stays."""
    harness = start("prefill_0", blocks=101)
    harness.run(as_prefill(make_work("holder", [1] * 380)))
    harness.engine.submit([as_prefill(make_work("waits", [2] * 380))])
    harness.until("queued", 1)
    harness.engine.cancel(["waits"])
    assert reason_of(harness.wait("waits"), alone=True) == "cancelled"
    harness.until("queued", 0)
    assert harness.load.handles_held == 1
    harness.engine.cancel(["holder"])
    harness.until_idle()


def test_in_decode(pair: Pair) -> None:
    """On a slow day an answer ends before it can be cancelled; not on ten of ten."""
    for attempt in range(10):
        request_id = f"decode-{attempt}"
        pair.decode.engine.submit([make_work(request_id, [3] * 30, max_tokens=400)])
        pair.decode.wait(request_id, Tokens)
        pair.decode.engine.cancel([request_id, "never heard of"])
        events = pair.decode.wait(request_id)
        pair.decode.until_idle()
        pair.decode.run(make_work("next", [1]))
        assert pair.decode.heard_of(request_id) == []
        if reason_of(events) == "cancelled":
            assert 1 <= len(tokens_of(events)) < 400
            return
    pytest.fail("no answer was ever cancelled")


def test_in_the_pull(stalled_pair: Callable[[float], Pair], subject: Subject) -> None:
    pair = stalled_pair(60.0)
    prefill, decode = pair.prefill, pair.decode
    work = make_work("pull", [4] * 30)
    (events,) = prefill.run(as_prefill(work))
    decode.engine.submit([as_decode(work, tokens_of(events), handle_of(events))])
    decode.until("queued", 1)
    decode.engine.cancel(["pull"])
    assert reason_of(decode.wait("pull"), alone=True) == "cancelled"
    decode.until_idle()
    assert prefill.load.handles_held == 1 or not subject.moves_kv_itself
    prefill.engine.cancel(["pull"])
    prefill.until_idle()


def test_while_the_handle_is_held(pair: Pair) -> None:
    """A prefill that has ended says nothing more; its lease ends."""
    work = make_work("held", [5] * 30)
    (events,) = pair.prefill.run(as_prefill(work))
    handle_of(events)
    pair.prefill.until("handles_held", 1)
    pair.prefill.engine.cancel(["held"])
    pair.prefill.until_idle()
    assert pair.prefill.heard_of("held") == []


@pytest.mark.parametrize("seed", range(3))
def test_at_any_moment_of_prefill(pair: Pair, seed: int) -> None:
    """Whatever the cancel meets, queue, step or lease: one end each, and nothing is left."""
    rng = random.Random(seed)
    work = [make_work(f"any-{i}", [rng.randrange(400) for _ in range(rng.randrange(1, 400))]) for i in range(30)]
    pair.prefill.engine.submit([as_prefill(w) for w in work])
    for w in rng.sample(work, 30):
        if rng.random() < 0.3:
            pair.prefill.wait(work[rng.randrange(3)].request_id, Tokens, Prefilled, Finished)
        pair.prefill.engine.cancel([w.request_id])
    for w in work:
        end = pair.prefill.wait(w.request_id)[-1]
        assert isinstance(end, Prefilled) or reason_of([end]) == "cancelled"
    pair.prefill.until_idle()


@pytest.mark.parametrize("seed", range(3))
def test_at_any_moment_of_both_stages(pair: Pair, seed: int) -> None:
    """Requests through both stages, a third cancelled at some moment: each ends once, and all is given back."""
    rng = random.Random(seed)
    work = [
        make_work(
            f"{seed}-{i}", [rng.randrange(400) for _ in range(rng.randrange(1, 60))], max_tokens=rng.randrange(2, 30)
        )
        for i in range(40)
    ]
    doomed = [w.request_id for w in work if rng.random() < 0.33]
    pair.prefill.engine.submit([as_prefill(w) for w in work])
    pair.prefill.engine.cancel(doomed[::3])
    decodes = []
    for w in work:
        events = pair.prefill.wait(w.request_id)
        if isinstance(events[-1], Prefilled):
            decodes.append(as_decode(w, tokens_of(events), handle_of(events)))
    for decode in decodes:
        pair.decode.engine.submit([decode])
        if rng.random() < 0.5:
            pair.decode.engine.cancel(doomed[1::3])
    pair.decode.engine.cancel(doomed)
    for decode in decodes:
        reason = reason_of(pair.decode.wait(decode.request_id))
        assert reason == "length" or (reason == "cancelled" and decode.request_id in doomed)
    pair.prefill.engine.cancel([w.request_id for w in work])
    pair.prefill.until_idle()
    pair.decode.until_idle()


def test_cancelled_requests_make_room(start: Callable[..., Harness], subject: Subject) -> None:
    """What waits for blocks starts when the handle that holds them is given up; with a library, when it is over."""
    times = {} if subject.moves_kv_itself else {"lease_s": 1.0, "transfer_timeout_s": 0.5}
    harness = start("prefill_0", blocks=101, **times)
    harness.run(as_prefill(make_work("holder", [1] * 380)))
    harness.engine.submit([as_prefill(make_work("waiter", [2] * 380))])
    harness.until("queued", 1)
    harness.engine.cancel(["holder"])
    handle_of(harness.wait("waiter"))
    harness.engine.cancel(["waiter"])
    harness.until_idle()


def test_more_than_there_is_room_for(start: Callable[..., Harness]) -> None:
    """Where few fit at a time all end, in the order of their arrival."""
    harness = start("decode_0", blocks=35)
    work = [make_work(f"small-{i}", [i] * 30, max_tokens=12) for i in range(40)]
    harness.engine.submit(list(work))
    assert all(len(tokens_of(harness.wait(w.request_id))) == 12 for w in work)
    harness.until_idle()
