"""What runs when: order, limits, room."""

from __future__ import annotations

from typing import Any

from tandem.engines.torch.scheduler import Scheduler
from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import BlockPool
from tandem.messages import AnyWork, Decode, Generate, Prefill, Sampling, Stopping

BLOCK = 4


def make(kind: type[AnyWork], tokens: int, max_tokens: int = 4, name: str = "r") -> Sequence:
    extra: dict[str, Any] = {"handle": b"", "output_ids": [1]} if kind is Decode else {}
    sequence = Sequence.of(
        kind(
            request_id=name,
            token_ids=[1] * tokens,
            sampling=Sampling(),
            stopping=Stopping(max_tokens=max_tokens),
            **extra,
        ),
        0.0,
    )
    if kind is Decode:
        sequence.num_cached = tokens
    return sequence


def make_scheduler(blocks: int = 100, size: int = 4, tokens: int = 32) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks)
    return Scheduler(pool, BLOCK, size, tokens), pool


def run(scheduler: Scheduler) -> tuple[bool, list[Sequence]] | None:
    """One step: every sequence gets a token; those that prefilled go on."""
    assert scheduler.admit() == []
    step = scheduler.next_step()
    if step is None:
        return None
    for sequence in step.sequences:
        sequence.append(1)
        if step.is_prefill:
            scheduler.prefilled(sequence)
    return step.is_prefill, step.sequences


def test_a_prefill_step_is_filled_up_to_its_tokens() -> None:
    scheduler, _ = make_scheduler(tokens=32, size=8)
    sequences = [make(Generate, n) for n in (10, 20, 2, 1, 30)]
    for s in sequences:
        scheduler.add(s)
    assert run(scheduler) == (True, sequences[:3])
    assert run(scheduler) == (False, sequences[:3])
    assert run(scheduler) == (True, sequences[3:])


def test_a_longer_prompt_goes_alone() -> None:
    scheduler, _ = make_scheduler(tokens=32)
    sequences = [make(Generate, n) for n in (1, 100, 1)]
    for s in sequences:
        scheduler.add(s)
    steps = [run(scheduler) for _ in range(5)]
    assert [s for s in steps if s and s[0]] == [(True, [s]) for s in sequences]


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


def test_blocks_for_the_whole_answer_are_reserved() -> None:
    """Prompt 5 and 4 more tokens, the last of which is never read: 8 tokens, 2 blocks."""
    scheduler, pool = make_scheduler()
    sequence = make(Generate, 5, max_tokens=4)
    scheduler.add(sequence)
    run(scheduler)
    assert pool.used == len(sequence.block_ids) == 2


def test_a_prefill_reserves_its_prompt_only() -> None:
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
