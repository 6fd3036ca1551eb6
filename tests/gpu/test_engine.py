"""What the stand-in cannot show: reuse as the library does it, its feeds, and what is left when a peer is gone."""

from __future__ import annotations

import random
from collections.abc import Callable

from tandem.kv.hashes import hash_blocks
from tandem.messages import Failed, Finished, Prefilled
from tests.unit.engines.conformance.conftest import Pair, introduce
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    handle_of,
    make_work,
    tokens_of,
)
from tests.unit.engines.conformance.subjects import Subject


def test_a_prompt_that_was_read_before_is_not_read_again(pair: Pair, subject: Subject) -> None:
    """And the blocks that hold it are told of by Tandem's names."""
    prompt = [random.Random(1).randrange(400) for _ in range(201)]
    work, cached, answers = make_work("again", prompt, max_tokens=10), [], []
    for _ in range(2):
        (first,) = pair.prefill.run(as_prefill(work))
        (rest,) = pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
        answers.append(tokens_of(first) + tokens_of(rest, start=1))
        assert isinstance(first[-1], Prefilled)
        cached.append(first[-1].cached_tokens)
        pair.prefill.until_cached(hash_blocks(prompt, subject.block_size))
    assert answers[0] == answers[1]
    assert cached[0] < subject.block_size <= 192 <= cached[1]


def test_statistics_come_with_steps(pair: Pair) -> None:
    before = pair.decode.load
    pair.decode.run(make_work("steps", [7] * 40, max_tokens=20))
    pair.decode.until_at_least("steps", before.steps + 10)
    pair.decode.until_at_least("prefill_tokens", before.prefill_tokens + 1)
    assert pair.decode.load.step_seconds > before.step_seconds
    assert pair.decode.load.blocks_total > 0


def test_kv_of_a_prefill_engine_that_is_gone_fails_the_transfer_and_nothing_else(start: Callable[..., Harness]) -> None:
    prefill, decode = start("prefill_0"), start("decode_0", transfer_timeout_s=5.0)
    introduce(prefill, decode)
    work = make_work("orphan", [1] * 100)
    (first,) = prefill.run(as_prefill(work))
    prefill.engine.stop()
    (end,) = decode.run(as_decode(work, tokens_of(first), handle_of(first)))[0][-1:]
    assert isinstance(end, Failed)
    assert end.code == "transfer_failed"
    assert isinstance(decode.run(make_work("next", [1] * 10))[0][-1], Finished)
