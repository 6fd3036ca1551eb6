"""Requests that begin alike share what was read, and engines tell what they keep."""

from __future__ import annotations

import random
from collections.abc import Callable

from tandem.kv.hashes import hash_blocks
from tandem.messages import EngineEvent, Finished, Prefilled
from tests.unit.engines.conformance.conftest import Pair
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    changed,
    fresh_prompt,
    handle_of,
    make_work,
    tokens_of,
)
from tests.unit.engines.conformance.subjects import Subject

BLOCK = 4


def test_a_prompt_that_was_read_before_is_not_read_again(pair: Pair) -> None:
    """All whole blocks but the last token's are reused, and the answer stays the same, here and after a hand-over."""
    prompt = fresh_prompt(41, seed=1)
    work = make_work("again", prompt, max_tokens=10, temperature=1.0, seed=1)
    answers, cached = [], []
    for _ in range(2):
        (first,) = pair.prefill.run(as_prefill(work))
        (second,) = pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
        answers.append(tokens_of(first) + tokens_of(second, start=1))
        end = first[-1]
        assert isinstance(end, Prefilled)
        cached.append(end.cached_tokens)
    assert answers[0] == answers[1]
    assert cached == [0, 40]


def cached_in(events: list[EngineEvent]) -> int:
    """What was cached of a request that both stages were done of."""
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.reason == "length"
    return end.cached_tokens


def test_a_whole_prompt_in_the_cache_still_leaves_a_token_to_read(pair: Pair) -> None:
    work = make_work("whole", fresh_prompt(40, seed=2), max_tokens=5)
    first, second = (pair.decode.run(work)[0] for _ in range(2))
    assert tokens_of(first) == tokens_of(second)
    assert cached_in(second) == 36


def test_a_common_beginning_is_enough(pair: Pair) -> None:
    prompt = fresh_prompt(40, seed=3)
    pair.decode.run(make_work("one", prompt))
    (events,) = pair.decode.run(make_work("other", prompt[:22] + fresh_prompt(18, seed=4)))
    assert cached_in(events) == 20


def test_tenants_share_nothing(pair: Pair) -> None:
    work = make_work("mine", fresh_prompt(40, seed=5))
    pair.decode.run(work)
    (events,) = pair.decode.run(changed(work, salt="another"))
    assert cached_in(events) == 0


def test_what_is_kept_is_told_by_its_names(pair: Pair) -> None:
    """Prompt and answer, so that the next turn of a conversation finds both; in decode also what was pulled."""
    prompt = fresh_prompt(30, seed=6)
    work = make_work("told", prompt, max_tokens=12)
    (first,) = pair.prefill.run(as_prefill(work))
    (second,) = pair.decode.run(as_decode(work, tokens_of(first), handle_of(first)))
    pair.prefill.until_idle()
    pair.decode.until_idle()
    pair.prefill.until_cached(hash_blocks(prompt, BLOCK))
    answer = tokens_of(first) + tokens_of(second, start=1)
    pair.decode.until_cached(hash_blocks([*prompt, *answer][:-1], BLOCK))


def test_the_least_recently_used_make_room_and_that_is_told(start: Callable[..., Harness]) -> None:
    """Far more than fits: the names told are always those of blocks that are there, and reuse never lies."""
    harness = start("decode_0", blocks=40)
    rng = random.Random(0)
    heads = [fresh_prompt(24, seed=10 + i) for i in range(6)]
    for i in range(80):
        work = make_work(f"evict-{i}", rng.choice(heads) + fresh_prompt(rng.randrange(1, 30), seed=100 + i))
        known = _leading(hash_blocks(work.token_ids, BLOCK), harness.cached)
        events = harness.run(work)[0]
        end = events[-1]
        assert isinstance(end, Finished)
        assert end.cached_tokens == BLOCK * min(known, (len(work.token_ids) - 1) // BLOCK)
        harness.until_cached(hash_blocks([*work.token_ids, *tokens_of(events)][:-1], BLOCK))
        harness.until_idle()
    harness.until("blocks_cached", len(harness.cached))
    assert harness.load.blocks_cached <= harness.load.blocks_total


def test_what_another_worker_keeps_makes_room_before_what_was_used_longer_ago(
    start: Callable[..., Harness], subject: Subject
) -> None:
    """A library that does not tell whose blocks go keeps its own order."""
    harness = start("decode_0", blocks=40)
    kept, spare = (make_work(name, fresh_prompt(41, seed=200 + n)) for n, name in enumerate(("kept", "spare")))
    answers = [tokens_of(harness.run(work)[0]) for work in (kept, changed(spare, keeps=False))]
    harness.run(make_work("more", fresh_prompt(100, seed=202)))
    (again,) = harness.run(changed(kept, request_id="again"))
    (read_anew,) = harness.run(changed(spare, request_id="anew"))
    if subject.moves_kv_itself:
        assert cached_in(again) == 40
        assert cached_in(read_anew) < 40
    assert [tokens_of(again), tokens_of(read_anew)] == answers


def _leading(names: list[int], cached: set[int]) -> int:
    """How many of the first names are cached."""
    return next((i for i, name in enumerate(names) if name not in cached), len(names))
