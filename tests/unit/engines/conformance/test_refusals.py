"""Work that cannot be done is refused by field, value and limit; handles that cannot be redeemed by their own codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tandem.messages import Failed, Finished, Guide, Sampling, Stopping
from tests.unit.engines.conformance.conftest import Pair, introduce
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    changed,
    failure_of,
    handle_of,
    make_work,
    tokens_of,
)

PROMPT = list(range(20, 50))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"token_ids": []}, "invalid_request", "token_ids: is empty"),
        ({"token_ids": [1, 400]}, "invalid_request", "token_ids: 400 is no token; ids go from 0 to 399"),
        ({"token_ids": [-1]}, "invalid_request", "token_ids: -1 is no token"),
        ({"token_ids": [1] * 512}, "prompt_too_long", "512 prompt tokens; this model takes at most 511"),
        ({"stopping": Stopping(max_tokens=0)}, "invalid_request", "max_tokens: 0; after 2 prompt tokens"),
        ({"stopping": Stopping(max_tokens=511)}, "invalid_request", "must lie from 1 to 510"),
        ({"stopping": Stopping(max_tokens=5, min_tokens=6)}, "invalid_request", "min_tokens: 6"),
        ({"stopping": Stopping(max_tokens=5, stop_token_ids=(999,))}, "invalid_request", "stop_token_ids: 999"),
        ({"output_ids": [1] * 8}, "invalid_request", "max_tokens: 8, but the answer has 8 tokens already"),
        ({"sampling": Sampling(temperature=float("nan"))}, "invalid_request", "temperature: nan"),
        ({"sampling": Sampling(temperature=-1.0)}, "invalid_request", "temperature: -1.0"),
        ({"sampling": Sampling(top_p=0.0)}, "invalid_request", "top_p: 0.0"),
        ({"sampling": Sampling(top_k=-1)}, "invalid_request", "top_k: -1"),
        ({"sampling": Sampling(min_p=1.5)}, "invalid_request", "min_p: 1.5"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "invalid_request", "repetition_penalty: 0.0"),
        ({"sampling": Sampling(logprobs=-1)}, "invalid_request", "logprobs: -1"),
    ],
)
def test_bad_fields_are_named(pair: Pair, changes: dict[str, Any], code: str, words: str) -> None:
    work = changed(make_work("bad", [1, 2]), **changes)
    for bad in (work, as_prefill(work, work.output_ids)):
        failure = failure_of(pair.decode.run(bad)[0])
        assert (failure.code, words in failure.message) == (code, True), failure.message


@pytest.mark.parametrize(
    ("asked", "field", "feature"),
    [
        ({"lora_task_id": 3}, "lora_task_id: 3", "lora"),
        ({"guide": Guide(kind="regex", text="[a-z]+")}, "guided_decoding_guide_type: 'regex'", "guided_decoding"),
    ],
)
def test_what_a_worker_has_not_is_refused_by_the_field_that_asks_for_it(
    pair: Pair, asked: dict[str, Any], field: str, feature: str
) -> None:
    assert pair.decode.engine.info.features == []
    failure = failure_of(pair.decode.run(make_work("bad", [1, 2], **asked))[0])
    assert failure.code == "invalid_request"
    assert field in failure.message
    assert f"engine {pair.decode.engine.info.engine!r}, has no {feature}" in failure.message


def test_what_no_worker_could_hold_is_refused_at_once(start: Callable[..., Harness]) -> None:
    harness = start("decode_0", blocks=20)
    blocks = harness.run(make_work("any", [1]))[0] and harness.load.blocks_total
    tokens = blocks * harness.engine.info.kv.block_size
    failure = failure_of(harness.run(make_work("huge", [1] * tokens, max_tokens=2))[0])
    assert (failure.code, f"has {blocks} (worker.kv_memory)" in failure.message) == ("prompt_too_long", True)


def test_handles_that_do_not_fit_are_refused(pair: Pair) -> None:
    work = make_work("handle", PROMPT)
    (events,) = pair.prefill.run(as_prefill(work))
    first, handle = tokens_of(events), handle_of(events)
    good = as_decode(work, first, handle)
    wrong = {
        "handle_forged": changed(good, handle=handle[:-1] + bytes([handle[-1] ^ 1])),
        "handle_malformed": changed(good, handle=handle[:-40]),
        "handle_version": changed(good, handle=handle[:4] + b"\xff\xff" + handle[6:]),
        "handle_tokens": changed(good, token_ids=[PROMPT[0] + 1, *PROMPT[1:]]),
        "invalid_request": changed(good, output_ids=[]),
    }
    for code, bad in wrong.items():
        assert failure_of(pair.decode.run(bad)[0]).code == code
    assert isinstance(pair.decode.run(good)[0][-1], Finished)  # none of them has used it up
    assert failure_of(pair.decode.run(changed(good, request_id="again"))[0]).code == "handle_used"
    pair.prefill.until_idle()
    pair.decode.until_idle()


def test_a_used_handle_is_refused_by_the_one_who_granted_it(pair: Pair, start: Callable[..., Harness]) -> None:
    """Two decode workers with one handle: only one gets the KV."""
    work = make_work("shared", PROMPT)
    (events,) = pair.prefill.run(as_prefill(work))
    decode = as_decode(work, tokens_of(events), handle_of(events))
    other = start("decode_1")
    introduce(pair.prefill, other)
    assert isinstance(other.run(decode)[0][-1], Finished)
    assert failure_of(pair.decode.run(decode)[0]).code == "handle_used"
    pair.prefill.until_idle()


def test_a_cancelled_lease_is_refused(pair: Pair) -> None:
    work = make_work("given-up", PROMPT)
    (events,) = pair.prefill.run(as_prefill(work))
    pair.prefill.engine.cancel(["given-up"])
    pair.prefill.until_idle()
    failure = failure_of(pair.decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0])
    assert failure.code == "lease_cancelled"
    pair.prefill.until_idle()
    pair.decode.until_idle()


def test_an_expired_lease_is_refused(start: Callable[..., Harness]) -> None:
    """An idle prefill engine ends leases by itself, and frees their blocks."""
    prefill, decode = start("prefill_0", lease_s=0.05), start("decode_0")
    introduce(prefill, decode)
    work = make_work("expired", PROMPT)
    (events,) = prefill.run(as_prefill(work))
    prefill.until("handles_expired", 1)
    prefill.until_idle()
    failure = failure_of(decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0])
    assert failure.code == "lease_expired"
    decode.until_idle()


def test_a_handle_of_another_epoch_is_refused(start: Callable[..., Harness]) -> None:
    """The prefill worker was started again: what its old handle names is gone."""
    old, new, decode = start("prefill_0"), start("prefill_0"), start("decode_0")
    introduce(old, decode)
    introduce(new, decode)
    work = make_work("old", PROMPT)
    (events,) = old.run(as_prefill(work))
    failure = failure_of(decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0])
    assert failure.code == "handle_stale_epoch"
    decode.engine.pair(old.engine.info)  # an older epoch does not replace a newer one
    failure = failure_of(decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0])
    assert failure.code == "handle_stale_epoch"


def test_a_handle_of_a_stranger_is_refused(pair: Pair, start: Callable[..., Harness]) -> None:
    lonely = start("decode_1")
    work = make_work("stranger", PROMPT)
    (events,) = pair.prefill.run(as_prefill(work))
    failure = failure_of(lonely.run(as_decode(work, tokens_of(events), handle_of(events)))[0])
    assert failure.code == "handle_unknown_worker"
    pair.prefill.engine.cancel(["stranger"])
    pair.prefill.until_idle()


def test_a_pull_that_does_not_end_fails_at_its_deadline(stalled_pair: Callable[[float], Pair]) -> None:
    pair = stalled_pair(0.2)
    prefill, decode = pair.prefill, pair.decode
    work = make_work("unheard", PROMPT)
    (events,) = prefill.run(as_prefill(work))
    (end,) = decode.run(as_decode(work, tokens_of(events), handle_of(events)))[0]
    assert isinstance(end, Failed)
    assert end.code == "transfer_failed"
    decode.until_idle()
