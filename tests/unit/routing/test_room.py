"""How much more the workers can take."""

from __future__ import annotations

import math

import msgspec
import pytest

from tandem.messages import Load
from tandem.routing.room import AHEAD_S, HEADROOM, Room
from tests.unit.routing.sites import BATCH, BLOCKS, MORE_S, PREFILL_S, ask, info, make_router, measured


def test_idle_workers_have_room_for_a_batch_and_a_little_more_and_for_what_they_read_ahead() -> None:
    room = make_router(each=2).room(kv_share=0.5)
    assert room is not None
    assert room.requests == 2 * BATCH * (1 + HEADROOM)
    assert room.blocks == pytest.approx(2 * BLOCKS / 2)
    assert room.prompt_tokens == pytest.approx(2 * AHEAD_S / PREFILL_S)
    assert (room.alone_s, room.read_s) == pytest.approx((MORE_S, MORE_S / 2))


def test_what_is_in_hand_takes_of_it_until_it_ends() -> None:
    router = make_router(each=1)
    free = router.room(1.0)
    route = router.commit(ask(router, [1, 2], answer=50), 0.0)
    room = router.room(1.0)
    assert free is not None
    assert room is not None
    assert room.requests == free.requests - 1
    assert room.blocks == pytest.approx(free.blocks)  # the prefill worker has the prompt's, and decode none yet
    assert room.prompt_tokens == pytest.approx(free.prompt_tokens - 33)
    route.first_token()
    route.sent("decode")
    handed_over = router.room(1.0)
    assert handed_over is not None
    assert handed_over.blocks == pytest.approx(free.blocks - 6)  # 33 tokens and 50
    route.end()
    assert router.room(1.0) == free


def test_no_more_is_meant_for_prompts_still_read_than_comes_free_soon() -> None:
    """Answers of 2,000 tokens take 40 s and more: of a thousand blocks hardly fifty come free in 2 s."""
    router = make_router(each=1, conditional_disaggregation=False)
    free = router.room(1.0)
    assert free is not None
    for _ in range(20):
        router.commit(ask(router, [1, 2], answer=50), 0.0)  # 6 blocks each
    room = router.room(1.0)
    assert room is not None
    soon = room.blocks - (free.blocks - 20 * 6)
    assert 25 < soon < 50
    for _ in range(1000):
        router.answered(50, 50)  # from now on they take a second
    assert router.room(1.0) == msgspec.structs.replace(room, blocks=free.blocks)


def test_a_request_that_ends_before_it_is_handed_over_leaves_nothing() -> None:
    router = make_router(each=1)
    free = router.room(1.0)
    for _ in range(2):
        route = router.commit(ask(router, [1, 2], answer=50), 0.0)
        route.end()
        route.end()
    assert router.room(1.0) == free


def test_answers_are_reckoned_as_long_as_others_of_late() -> None:
    """Of 2000 tokens asked for, 40 are written: what the longest answers would need is not held free."""
    router = make_router(each=1)
    free = router.room(1.0)
    assert router.blocks_for(33, 2000) == 128
    for _ in range(1000):
        router.answered(2000, 40)
    assert router.blocks_for(33, 2000) == 5
    router.commit(ask(router, [1, 2], answer=2000), 0.0).sent("decode")
    room = router.room(1.0)
    assert free is not None
    assert room is not None
    assert room.blocks == pytest.approx(free.blocks - 5)


def test_what_others_have_there_counts_and_one_full_worker_does_not_fill_another() -> None:
    router = make_router(each=2)
    router.report("decode_0", 1, measured(running=500, blocks_used=BLOCKS + 500), None)
    room = router.room(1.0)
    assert room is not None
    assert (room.requests, room.blocks) == (BATCH * (1 + HEADROOM), pytest.approx(BLOCKS))


def room_with(load: Load) -> Room:
    """Of two workers, of which the prefill worker has a new engine that has told this."""
    router = make_router(each=1)
    router.join("prefill_0", info("prefill_0", "prefill", 2), Load())
    router.report("prefill_0", 2, load, None)
    room = router.room(1.0)
    assert room is not None
    return room


def test_long_steps_get_more_ahead() -> None:
    slow = measured(prefill_steps=1, prefill_tokens=1000, prefill_seconds=1000.0, step_seconds=1000.0, steps=1)
    # The step is of a thousand tokens, a fifth of a second is not even of one.
    assert room_with(slow).prompt_tokens > 500


def test_long_prompts_are_not_foretold_by_short_ones() -> None:
    """A step of ten tokens takes 30 ms, for the most part whatever it reads: 1,500 tokens do not take 4.5 s."""
    short = measured(prefill_steps=1000, prefill_tokens=10_000, prefill_seconds=30.0, step_seconds=30.0, steps=1000)
    alone_s = room_with(short).alone_s
    assert alone_s is not None
    assert 1500 * alone_s < 1.5


def test_nothing_is_known_before_anybody_was_measured_and_nobody_is_no_room() -> None:
    router = make_router(each=0)
    assert router.room(1.0) is None
    for name, stage in (("p", "prefill"), ("d", "decode")):
        router.add(name, stage)  # type: ignore[arg-type]
        router.join(name, info(name, stage), Load())  # type: ignore[arg-type]
    room = router.room(1.0)
    assert room is not None
    assert (room.prompt_tokens, room.blocks, room.read_s, room.alone_s) == (math.inf, math.inf, None, None)
    assert room.requests == BATCH * (1 + HEADROOM)
    router.lose("d")
    alone = router.room(1.0)
    assert alone is not None
    assert alone.requests == BATCH * (1 + HEADROOM)  # prefill does both now
