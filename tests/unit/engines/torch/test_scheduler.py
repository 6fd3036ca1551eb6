"""What runs when: order, limits, room, and what is read again."""

from __future__ import annotations

import itertools
from typing import Any

from tandem.engines.torch.pace import FIRST_CHUNK, LEAST_CHUNK, Pace
from tandem.engines.torch.scheduler import Scheduler, Step
from tandem.engines.torch.sequence import Sequence
from tandem.kv.prefix_cache import PrefixCache
from tandem.messages import AnyWork, Decode, Generate, Lender, Prefill, Sampling, Stopping

BLOCK = 4


_texts = itertools.count()


def make(
    kind: type[AnyWork],
    tokens: int,
    max_tokens: int = 4,
    name: str = "r",
    token_ids: list[int] | None = None,
    lent: int = 0,
) -> Sequence:
    """A sequence of ``tokens`` tokens that no other one begins with, or of ``token_ids``. Somebody holds the KV of
    ``lent`` of them."""
    extra: dict[str, Any] = {"handle": b"", "output_ids": [1]} if kind is Decode else {}
    sequence = Sequence.of(
        kind(
            request_id=name,
            token_ids=token_ids or [next(_texts)] * tokens,
            sampling=Sampling(),
            stopping=Stopping(max_tokens=max_tokens),
            lender=Lender(worker_id="w", num_tokens=lent) if lent else None,
            **extra,
        ),
        0.0,
        BLOCK,
    )
    if kind is Decode:
        sequence.num_cached = tokens
    return sequence


def make_scheduler(blocks: int = 100, size: int = 4, tokens: int = 32) -> tuple[Scheduler, PrefixCache]:
    pool = PrefixCache(blocks)
    return Scheduler(pool, size, tokens, Pace(60.0)), pool


def run_step(scheduler: Scheduler, seconds: float = 0.0) -> tuple[Step, int] | None:
    """One step, and how many tokens it read: every sequence that was read to its end gets a token; those that
    prefilled go on."""
    assert scheduler.admit() == []
    step = scheduler.next_step()
    if step is None:
        return None
    tokens = step.num_tokens
    scheduler.stepped(step, 0.0, seconds)
    for sequence in step.sequences:
        if sequence.num_uncached == 0:
            sequence.append(1)
            if step.is_prefill:
                scheduler.prefilled(sequence)
    return step, tokens


def run(scheduler: Scheduler) -> tuple[bool, list[Sequence]] | None:
    """One step: whether it was prefill, and of which sequences."""
    ran = run_step(scheduler)
    return ran and (ran[0].is_prefill, ran[0].sequences)


def test_a_prefill_step_is_filled_up_to_its_tokens() -> None:
    scheduler, _ = make_scheduler(tokens=32, size=8)
    sequences = [make(Generate, n) for n in (10, 20, 2, 1, 30)]
    for s in sequences:
        scheduler.add(s)
    assert run(scheduler) == (True, sequences[:3])
    assert run(scheduler) == (False, sequences[:3])
    assert run(scheduler) == (True, sequences[3:])


def test_a_longer_prompt_takes_several_steps() -> None:
    """The first one is filled up with it, and what comes after it fills up the last one."""
    scheduler, _ = make_scheduler(tokens=32)
    first, long, last = (make(Prefill, n) for n in (5, 80, 9))
    for s in (first, long, last):
        scheduler.add(s)
    got = []
    while ran := run_step(scheduler):
        step, _ = ran
        got.append((step.sequences, step.left))
        for s in step.sequences:
            if s.num_output:
                scheduler.remove(s)
    assert got == [([first, long], 53), ([long], 21), ([long, last], 0)]


def test_chunks_beside_running_answers_take_turns_with_them() -> None:
    """The first chunk is a guess, and no step reads more than ``max_batch_tokens``."""
    scheduler, _ = make_scheduler(tokens=64, blocks=1000)
    running, long = make(Generate, 4, max_tokens=1000), make(Generate, 300)
    scheduler.add(running)
    run(scheduler)
    scheduler.add(long)
    reads = []
    while not long.num_output:
        ran = run_step(scheduler, seconds=0.001)
        assert ran is not None
        reads.append(ran[1] if ran[0].is_prefill else 0)
    chunks = reads[1::2]
    assert reads[::2] == [0] * len(reads[::2])
    assert sum(chunks) == 300
    assert FIRST_CHUNK <= chunks[0] <= max(chunks) == 64


def test_a_slow_machine_reads_small_chunks() -> None:
    """A bound that cannot be kept: prompts get on all the same."""
    scheduler, pool = make_scheduler(tokens=512, blocks=1000)
    scheduler = Scheduler(pool, 4, 512, Pace(1.0))
    running, long = make(Generate, 4, max_tokens=1000), make(Generate, 300)
    scheduler.add(running)
    run_step(scheduler, seconds=1.0)
    run_step(scheduler, seconds=1.0)
    scheduler.add(long)
    ran = [run_step(scheduler, seconds=1.0) for _ in range(10)]
    assert {r[1] for r in ran if r and r[0].is_prefill} == {LEAST_CHUNK}


def test_without_running_answers_a_prompt_is_read_in_whole_steps() -> None:
    scheduler, _ = make_scheduler(tokens=256)
    scheduler.add(make(Prefill, 300))
    ran = [run_step(scheduler, seconds=10.0) for _ in range(2)]
    assert [r and r[1] for r in ran] == [256, 44]


def test_what_others_have_read_is_not_read_again() -> None:
    """Whole blocks only, and never the last token: something must make the next one."""
    scheduler, pool = make_scheduler()
    text = list(range(1000, 1012))
    first = make(Generate, 0, token_ids=text)
    scheduler.add(first)
    run(scheduler)
    same, longer, other = (make(Generate, 0, token_ids=t) for t in (text, [*text, 1, 2], [*text[:4], 0, *text[5:]]))
    for s in (same, longer, other):
        scheduler.add(s)
    scheduler.admit()
    assert [s.num_cached for s in (same, longer, other)] == [8, 12, 4]
    assert [s.cached_tokens for s in (same, longer, other)] == [8, 12, 4]
    assert same.block_ids[:2] == longer.block_ids[:2] == first.block_ids[:2]
    assert pool.holders(first.block_ids[0]) == 4


def test_a_prompt_that_is_cancelled_half_way_leaves_what_it_has_read() -> None:
    scheduler, pool = make_scheduler(tokens=16)
    text = list(range(2000, 2040))
    sequence = make(Prefill, 0, token_ids=text)
    scheduler.add(sequence)
    ran = run_step(scheduler)
    assert ran is not None
    assert (ran[0].left, sequence.num_cached) == (24, 16)
    scheduler.remove(sequence)
    pool.free(sequence.block_ids)
    assert (pool.used, pool.cached, scheduler.running) == (0, 4, 0)
    again = make(Prefill, 0, token_ids=text)
    scheduler.add(again)
    scheduler.admit()
    assert again.num_cached == 16


def test_a_pull_keeps_one_block_of_its_own_to_read_into() -> None:
    """A lease ends with a read; and what is read never goes into a block that others use."""
    scheduler, pool = make_scheduler()
    text = list(range(3000, 3012))
    reader = make(Prefill, 0, token_ids=text)
    scheduler.add(reader)
    run(scheduler)
    decode = make(Decode, 0, token_ids=text)
    decode.num_cached = 12
    scheduler.add(decode)
    assert scheduler.admit() == [decode]
    assert (decode.num_shared, decode.num_cached) == (2, 12)
    assert decode.block_ids[:2] == reader.block_ids[:2]
    assert decode.block_ids[2] != reader.block_ids[2]
    scheduler.pulled(decode)
    assert decode.block_ids[2] == reader.block_ids[2]  # it held the same
    assert pool.used == len({*reader.block_ids, *decode.block_ids})


def test_decode_takes_turns_with_prefill() -> None:
    """A stream of new prompts does not starve those who are writing."""
    scheduler, _ = make_scheduler(size=8, tokens=4)
    for _ in range(4):
        scheduler.add(make(Generate, 4))
    assert [(step := run(scheduler)) and step[0] for _ in range(5)] == [True, False, True, False, True]


def test_the_batch_has_a_size() -> None:
    scheduler, _ = make_scheduler(size=2)
    sequences = [make(Generate, 1) for _ in range(3)]
    for s in sequences:
        scheduler.add(s)
    assert run(scheduler) == (True, sequences[:2])
    assert run(scheduler) == (False, sequences[:2])
    assert (scheduler.running, scheduler.queued) == (2, 1)
    scheduler.remove(sequences[0])
    assert run(scheduler) == (True, sequences[2:])
    assert run(scheduler) == (False, sequences[1:])


def test_blocks_come_as_the_answer_grows() -> None:
    """Prompt 5 and 5 more tokens, the last of which is never read: 9 tokens, 3 blocks in the end."""
    scheduler, pool = make_scheduler()
    sequence = make(Generate, 5, max_tokens=5)
    scheduler.add(sequence)
    used = []
    for _ in range(5):
        run(scheduler)
        used.append(pool.used)
    assert used == [2, 2, 2, 2, 3]
    assert len(sequence.token_ids) == 10


def test_a_prefill_takes_blocks_for_its_prompt_only() -> None:
    scheduler, pool = make_scheduler()
    scheduler.add(make(Prefill, 5, max_tokens=400))
    assert scheduler.admit() == []
    assert pool.used == 2


def test_without_room_all_wait_in_order() -> None:
    """A small request does not overtake a large one that waits for blocks."""
    scheduler, pool = make_scheduler(blocks=4)
    first, large, small = make(Generate, 4), make(Generate, 12), make(Generate, 1)
    for s in (first, large, small):
        scheduler.add(s)
    assert run(scheduler) == (True, [first])
    assert run(scheduler) == (False, [first])
    assert scheduler.queued == 2
    scheduler.remove(first)
    pool.free(first.block_ids)
    assert run(scheduler) == (True, [large])
    scheduler.remove(large)
    pool.free(large.block_ids)
    assert run(scheduler) == (True, [small])


def test_pulls_start_as_soon_as_there_is_memory() -> None:
    """Even with all places of a step taken: a lease does not wait."""
    scheduler, _ = make_scheduler(size=1)
    sequences = [make(Decode, 4, name=str(i)) for i in range(3)]
    for s in sequences:
        scheduler.add(s)
    assert scheduler.admit() == sequences
    assert scheduler.next_step() is None
    assert (scheduler.running, scheduler.queued) == (0, 3)
    for s in reversed(sequences):
        scheduler.pulled(s)
    assert run(scheduler) == (False, sequences[2:])
    assert (scheduler.running, scheduler.queued) == (1, 2)


def test_what_a_handle_does_not_cover_is_prefilled() -> None:
    scheduler, _ = make_scheduler()
    sequence = make(Decode, 8)
    sequence.num_cached = 6
    scheduler.add(sequence)
    assert scheduler.admit() == [sequence]
    scheduler.pulled(sequence)
    assert run(scheduler) == (True, [sequence])


def test_removed_sequences_are_gone_from_everywhere() -> None:
    scheduler, _ = make_scheduler(size=2)
    waiting, running, pulling = make(Generate, 1), make(Generate, 1), make(Decode, 4)
    scheduler.add(running)
    run(scheduler)
    scheduler.add(pulling)
    assert scheduler.admit() == [pulling]
    scheduler.add(waiting)
    for s in (waiting, running, pulling):
        scheduler.remove(s)
    assert (scheduler.running, scheduler.queued) == (0, 0)
    assert scheduler.next_step() is None


def test_what_is_lent_is_pulled_and_the_rest_is_read() -> None:
    """It counts as if it were here; meanwhile others have their turn."""
    scheduler, pool = make_scheduler()
    borrower, other = make(Prefill, 22, lent=14), make(Prefill, 10, name="other")
    for s in (borrower, other):
        scheduler.add(s)
    assert scheduler.queued_tokens == 8 + 10
    assert scheduler.admit() == [borrower]
    assert scheduler.is_pulling(borrower)
    assert (scheduler.queued, scheduler.queued_tokens) == (1, 8 + 10)
    assert run(scheduler) == (True, [other])
    scheduler.remove(other)
    borrower.num_lent = 3
    scheduler.borrowed(borrower)
    assert (borrower.num_cached, borrower.cached_tokens, scheduler.queued_tokens) == (12, 12, 10)
    assert run_step(scheduler) == (Step(True, [borrower]), 10)
    assert pool.reserve(borrower.chain, 3, 3)[1] == 3  # for others as well


def test_what_is_not_lent_after_all_is_read_first() -> None:
    scheduler, pool = make_scheduler()
    borrower, other = make(Prefill, 22, lent=20), make(Prefill, 12, name="other")
    for s in (borrower, other):
        scheduler.add(s)
    scheduler.admit()
    blocks = list(borrower.block_ids)
    pool.pin(blocks)  # something may still write to them
    scheduler.not_lent(borrower)
    assert (borrower.block_ids, scheduler.queued_tokens) == ([], 34)
    assert run_step(scheduler) == (Step(True, [other, borrower], left=2), 32)
    assert not set(borrower.block_ids) & set(blocks)
    pool.unpin(blocks)


def test_who_holds_as_much_as_the_lender_asks_for_nothing() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(make(Generate, 0, token_ids=list(range(1000, 1020))))
    run(scheduler)
    scheduler.add(make(Generate, 0, name="again", token_ids=list(range(1000, 1020)), lent=19))
    assert scheduler.admit() == []
    assert scheduler.queued_tokens == 4


def test_a_prompt_is_borrowed_before_there_is_room_in_a_step() -> None:
    """It is there by the time that its turn has come."""
    scheduler, _ = make_scheduler(tokens=8)
    long, borrower = make(Prefill, 40), make(Prefill, 22, name="borrower", lent=20)
    for s in (long, borrower):
        scheduler.add(s)
    assert scheduler.admit() == [borrower]


def test_who_has_given_way_borrows_no_more() -> None:
    sequence = make(Generate, 22, lent=20)
    assert sequence.borrows
    sequence.give_up()
    assert not sequence.borrows
    assert sequence.num_unread == 22
