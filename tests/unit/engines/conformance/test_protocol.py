"""What every engine says, and in what order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tandem.errors import TandemError
from tandem.messages import EngineEvent, Finished, Generate, Prefilled, Pulled, Tokens
from tests.unit.engines.conformance.conftest import Pair, introduce
from tests.unit.engines.conformance.harness import (
    ENDS,
    Harness,
    as_decode,
    as_prefill,
    changed,
    failure_of,
    handle_of,
    make_work,
    reason_of,
    tokens_of,
)
from tests.unit.engines.conformance.subjects import Subject


def prompts(count: int, longest: int = 200) -> list[list[int]]:
    """Random prompts, the same in every run."""
    rng = random.Random(count)
    return [[rng.randrange(400) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def whole_answer(pair: Pair, work: Generate) -> list[int]:
    """What one engine answers that does both stages."""
    return tokens_of(pair.decode.run(work)[0])


def test_info_says_who_it_is(pair: Pair, subject: Subject) -> None:
    first, second = pair.prefill.engine.info, pair.decode.engine.info
    assert (first.worker_id, first.stage, second.worker_id, second.stage) == (
        "prefill_0",
        "prefill",
        "decode_0",
        "decode",
    )
    assert first.epoch != second.epoch
    assert first.kv == second.kv
    assert (first.vocab_size, first.max_model_len, first.kv.block_size) == (400, 512, subject.block_size)


def test_generate_is_tokens_and_one_end(pair: Pair) -> None:
    work = make_work("plain", [1, 2, 3], max_tokens=20)
    (events,) = pair.decode.run(work)
    assert [type(e) for e in events[:-1]] == [Tokens] * (len(events) - 1)
    assert len(tokens_of(events)) == 20
    assert reason_of(events) == "length"


def test_prefill_is_one_token_then_prefilled(pair: Pair) -> None:
    (events,) = pair.prefill.run(as_prefill(make_work("prefill", [5] * 30)))
    assert [type(e) for e in events] == [Tokens, Prefilled]
    assert len(tokens_of(events)) == 1
    end = events[-1]
    assert isinstance(end, Prefilled)
    assert (end.finish_reason, bool(end.handle), end.queue_s >= 0, end.compute_s >= 0) == (None, True, True, True)
    pair.prefill.engine.cancel(["prefill"])
    pair.prefill.until_idle()


def test_decode_is_pulled_then_tokens_from_the_second_on(pair: Pair) -> None:
    work = make_work("decode", [6] * 30, max_tokens=10)
    (first,) = pair.prefill.run(as_prefill(work))
    (second,) = pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
    assert [type(e) for e in second] == [Pulled, *[Tokens] * (len(second) - 2), Finished]
    assert len(tokens_of(second, start=1)) == 9
    pulled = second[0]
    assert isinstance(pulled, Pulled)
    assert pulled.bytes_moved > 0
    assert pulled.seconds >= 0


def test_two_engines_answer_as_one(pair: Pair) -> None:
    work = [
        make_work(f"same-{i}", p, max_tokens=20, temperature=0.7 * pair.temperature * (i % 2), top_p=0.95, seed=i)
        for i, p in enumerate(prompts(12))
    ]
    together = [tokens_of(e) for e in pair.decode.run(*work)]
    first = pair.prefill.run(*map(as_prefill, work))
    starts = [tokens_of(events) for events in first]
    second = pair.decode.run(*(as_decode(w, s, handle_of(e)) for w, s, e in zip(work, starts, first, strict=True)))
    assert [s + tokens_of(e, start=1) for s, e in zip(starts, second, strict=True)] == together
    assert all(isinstance(e[0], Pulled) and isinstance(e[-1], Finished) for e in second)
    pair.prefill.until_idle()
    pair.decode.until_idle()


def test_a_replayed_prefill_goes_on_with_the_answer(pair: Pair) -> None:
    """After a loss, prefill reads prompt and answer so far: the next token is that of the lost answer."""
    work = make_work("replay", prompts(1)[0], max_tokens=12, temperature=pair.temperature, seed=4)
    whole = whole_answer(pair, work)
    (first,) = pair.prefill.run(as_prefill(work, whole[:5]))
    assert tokens_of(first, start=5) == whole[5:6]
    (rest,) = pair.decode.run(as_decode(work, whole[:6], handle_of(first)))
    assert tokens_of(rest, start=6) == whole[6:]


def test_a_handle_may_cover_less_than_the_answer_so_far(pair: Pair) -> None:
    work = make_work("short", prompts(1)[0], max_tokens=12, temperature=pair.temperature, seed=3)
    whole = whole_answer(pair, work)
    (first,) = pair.prefill.run(as_prefill(work))
    (rest,) = pair.decode.run(as_decode(work, whole[:5], handle_of(first)))
    assert tokens_of(rest, start=5) == whole[5:]


def test_generate_goes_on_after_an_answer_so_far(pair: Pair) -> None:
    work = make_work("moved", prompts(1)[0], max_tokens=12, temperature=pair.temperature, seed=5)
    whole = whole_answer(pair, work)
    (rest,) = pair.decode.run(changed(work, output_ids=whole[:7]))
    assert tokens_of(rest, start=7) == whole[7:]


def test_a_first_token_that_ends_the_answer_leaves_no_handle(pair: Pair) -> None:
    work = make_work("one", [7] * 20, max_tokens=1)
    (events,) = pair.prefill.run(as_prefill(work))
    first = tokens_of(events)
    assert len(first) == 1
    assert events[-1] == changed(events[-1], handle=None, finish_reason="length")
    stopped = make_work("one", [7] * 20, max_tokens=10, stop_token_ids=tuple(first))
    (events,) = pair.prefill.run(as_prefill(stopped))
    assert events[-1] == changed(events[-1], handle=None, finish_reason="stop")
    pair.prefill.until_idle()


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
def test_max_tokens_ends_an_answer(pair: Pair, max_tokens: int) -> None:
    (events,) = pair.decode.run(make_work("length", [8] * 9, max_tokens=max_tokens))
    assert len(tokens_of(events)) == max_tokens
    assert reason_of(events) == "length"


def test_a_stop_token_ends_an_answer_and_is_told(pair: Pair) -> None:
    work = make_work("free", [9] * 20, max_tokens=20, temperature=1.0, seed=1)
    whole = whole_answer(pair, work)
    end = next(i for i, t in enumerate(whole) if i >= 3 and t not in whole[:i])
    stopping = changed(work.stopping, stop_token_ids=(whole[end],))
    (events,) = pair.decode.run(changed(work, stopping=stopping))
    assert tokens_of(events) == whole[: end + 1]
    assert reason_of(events) == "stop"


def test_min_tokens_keeps_an_answer_from_stopping(pair: Pair) -> None:
    """A stop token among the first ``min_tokens`` does not end the answer."""
    work = make_work("free", [10] * 20, max_tokens=20, temperature=1.0, seed=2)
    whole = whole_answer(pair, work)
    stops = tuple(set(range(400)))
    (events,) = pair.decode.run(changed(work, stopping=changed(work.stopping, min_tokens=7, stop_token_ids=stops)))
    assert len(tokens_of(events)) == 8
    assert reason_of(events) == "stop"
    assert len(whole) == 20


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_come_when_asked_for(pair: Pair, top: int) -> None:
    (events,) = pair.decode.run(make_work("logprobs", [11] * 9, max_tokens=5, logprobs=top))
    told = [p for e in events if isinstance(e, Tokens) for p in e.logprobs or []]
    assert [len(p.top) for p in told] == [top] * 5
    assert all(p.logprob <= 0 for p in told)
    (events,) = pair.decode.run(make_work("logprobs", [11] * 9, max_tokens=5))
    assert all(e.logprobs is None for e in events if isinstance(e, Tokens))


def test_nothing_is_said_after_the_end(pair: Pair) -> None:
    work = [make_work(f"once-{i}", p, max_tokens=1 + i) for i, p in enumerate(prompts(10))]
    for events in pair.decode.run(*work):
        assert sum(isinstance(e, ENDS) for e in events) == 1
    pair.decode.run(make_work("later", [1]))
    assert all(pair.decode.heard_of(w.request_id) == [] for w in work)


def test_load_counts_what_was_done(pair: Pair) -> None:
    before, granted = pair.decode.until_idle(), pair.prefill.until_idle().handles_granted
    work = make_work("counted", [12] * 30, max_tokens=6)
    (first,) = pair.prefill.run(as_prefill(work))
    pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
    after = pair.decode.until_idle()
    assert after.pulls == before.pulls + 1
    assert after.bytes_pulled > before.bytes_pulled
    pair.decode.until_at_least("steps", before.steps + 5)
    assert after.blocks_total > 0
    pair.prefill.until("handles_granted", granted + 1)
    pair.prefill.until_idle()


def test_a_worker_that_does_not_fit_is_refused_when_it_is_met(pair: Pair) -> None:
    peer = pair.prefill.engine.info
    stranger = changed(
        peer, worker_id="stranger", kv=changed(peer.kv, block_size=2 * peer.kv.block_size, fingerprint="another")
    )
    with pytest.raises(TandemError, match=r"kv.fingerprint is .*kv.block_size is \d+ here and \d+ there") as caught:
        pair.decode.engine.pair(stranger)
    assert caught.value.code == "worker_incompatible"


def test_a_peer_that_is_gone_for_good_is_forgotten_and_may_return(start: Callable[..., Harness]) -> None:
    prefill, decode = start("prefill_0"), start("decode_0")
    work = make_work("returns", [7] * 30, max_tokens=4)

    def hand_over() -> list[EngineEvent]:
        (events,) = prefill.run(as_prefill(work))
        return decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0]

    for _ in range(3):
        introduce(prefill, decode)
        assert reason_of(hand_over()) == "length"
        for one, other in ((prefill, decode), (decode, prefill)):
            one.engine.unpair(other.engine.info.worker_id)
            one.engine.unpair("nobody")
        assert failure_of(hand_over()).code == "handle_unknown_worker"
        prefill.engine.cancel(["returns"])
        prefill.until_idle()


def test_two_workers_for_both_stages_read_from_each_other(start: Callable[..., Harness]) -> None:
    one, other = start("both_0"), start("both_1")
    introduce(one, other)
    for number in range(4):
        giver, taker = (one, other) if number % 2 else (other, one)
        work = make_work(f"across {number}", [number + 1] * 30, max_tokens=6)
        (events,) = giver.run(as_prefill(work))
        (rest,) = taker.run(as_decode(work, tokens_of(events), handle_of(events)))
        assert tokens_of(events) + tokens_of(rest, start=1) == tokens_of(giver.run(work)[0])
    assert (one.engine.info.stage, other.engine.info.stage) == ("both", "both")


def test_a_request_in_hand_is_not_taken_twice(pair: Pair) -> None:
    work = make_work("twin", [1, 2, 3], max_tokens=200)
    pair.decode.engine.submit([work, work])
    refusal = failure_of(pair.decode.wait("twin"))
    assert (refusal.code, "in hand already" in refusal.message) == ("invalid_request", True)
    assert reason_of(pair.decode.wait("twin")) == "length"
    assert isinstance(pair.decode.run(work)[0][-1], Finished)  # its id is free again


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
        {
            "temperature": 1.0,
            "seed": 11,
            "top_p": 0.95,
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.7,
            "logprobs": 2,
        },
        {"temperature": 1.5, "seed": 3, "min_tokens": 9},
    ],
    ids=["greedy", "sampled", "min-tokens"],
)
def test_an_answer_goes_on_on_another_worker_as_it_would_have(pair: Pair, sampling: dict[str, Any]) -> None:
    """Cut after any token: replayed tokens count as answer, not as prompt, for penalties, randomness and lengths."""
    stops = tuple(range(0, 400, 3)) if "min_tokens" in sampling else ()
    work = make_work("whole", [7, 3, 7, 9] * 5, max_tokens=14, stop_token_ids=stops, **sampling)
    (undisturbed,) = pair.decode.run(work)
    whole = tokens_of(undisturbed)
    for cut in range(1, len(whole)):
        moved = changed(work, request_id=f"cut-{cut}", output_ids=whole[:cut])
        (first,) = pair.prefill.run(as_prefill(moved, whole[:cut]))
        made = tokens_of(first, start=cut)
        assert made == whole[cut : cut + 1]
        if cut + 1 < len(whole):
            (rest,) = pair.decode.run(as_decode(moved, whole[: cut + 1], handle_of(first)))
            assert tokens_of(rest, start=cut + 1) == whole[cut + 1 :]
            assert reason_of(rest) == reason_of(undisturbed)
        assert logprobs_of(first) == pytest.approx(logprobs_of(undisturbed)[cut : cut + 1], abs=1e-4)
    pair.prefill.until_idle()
    pair.decode.until_idle()


def logprobs_of(events: list[EngineEvent]) -> list[float]:
    return [entry.logprob for event in events if isinstance(event, Tokens) for entry in event.logprobs or []]
