"""Who gives way when no block is free: against a KV memory that is really written and read, block by block."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.engines.torch import preemption
from tandem.engines.torch.pace import Pace
from tandem.engines.torch.preemption import AHEAD_TOKENS, PreemptedQueue, rank
from tandem.engines.torch.scheduler import Scheduler, Step
from tandem.engines.torch.sequence import Sequence
from tandem.kv.prefix_cache import PrefixCache
from tandem.messages import AnyWork, Decode, Generate, Prefill, Sampling, Stopping

BLOCK = 4
LONGEST_WAIT = 200
"""Turns in which nothing but pulls and leases moves."""


def make_sequence(kind: type[AnyWork], prompt: list[int], max_tokens: int, name: str, priority: int = 5) -> Sequence:
    extra: dict[str, Any] = {"handle": b"", "output_ids": [next_token(prompt)]} if kind is Decode else {}
    work = kind(
        request_id=name,
        token_ids=prompt,
        sampling=Sampling(),
        stopping=Stopping(max_tokens=max_tokens),
        priority=priority,
        **extra,
    )
    sequence = Sequence.of(work, 0.0, BLOCK)
    if kind is Decode:
        sequence.num_cached = len(prompt)
    return sequence


def next_token(tokens: list[int]) -> int:
    """What the model makes of all tokens so far."""
    return (sum((i + 1) * t for i, t in enumerate(tokens)) * 31 + len(tokens)) % 5


def answer(sequence: Sequence) -> list[int]:
    """What an undisturbed engine answers."""
    tokens = list(sequence.work.token_ids)
    while len(tokens) < len(sequence.work.token_ids) + sequence.work.stopping.max_tokens:
        tokens.append(next_token(tokens))
    return tokens[len(sequence.work.token_ids) :]


@dataclass
class Machine:
    """An engine around the scheduler, whose steps read every token from the block that holds it."""

    blocks: int
    batch: int = 4
    tokens: int = 16
    delay: Callable[[], int] = lambda: 0
    """Turns that a pull takes, and that a lease holds blocks."""
    preempted: list[Sequence] = field(default_factory=list)
    told: dict[str, list[int]] = field(default_factory=dict)
    """Tokens by request."""

    def __post_init__(self) -> None:
        self.pool = PrefixCache(self.blocks)
        self.scheduler = Scheduler(self.pool, self.batch, self.tokens, Pace(60.0))
        self.scheduler.on_preempt = self.check_preempted
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}
        """By block and slot: the tokens that decide its KV."""
        self.in_hand: list[Sequence] = []
        self.later: list[tuple[int, Callable[[], None]]] = []
        self.turns = 0

    def add(self, sequence: Sequence) -> Sequence:
        assert sequence.blocks_needed <= self.blocks
        self.in_hand.append(sequence)
        self.told[sequence.request_id] = list(sequence.work.output_ids)
        self.scheduler.add(sequence)
        return sequence

    def check_preempted(self, sequence: Sequence) -> None:
        """It holds nothing, and nobody who could have given way instead goes after it."""
        assert not sequence.block_ids
        others = [s for s in self.in_hand if s.block_ids and not self.scheduler.is_pulling(s)]
        assert others, "the only one gave way"
        assert all(rank(other) < rank(sequence) for other in others)
        self.preempted.append(sequence)

    def turn(self) -> bool:
        """Whether a step was run."""
        self.turns += 1
        due = [act for at, act in self.later if at <= self.turns]
        self.later = [(at, act) for at, act in self.later if at > self.turns]
        for act in due:
            act()
        for sequence in self.scheduler.admit():
            self.later.append((self.turns + self.delay(), lambda s=sequence: self.pull(s)))  # type: ignore[misc]
        step = self.scheduler.next_step()
        if step is not None:
            self.run(step)
        self.check_counts()
        return step is not None

    def check_counts(self) -> None:
        scheduler = self.scheduler
        assert scheduler.queued + scheduler.running == len(self.in_hand)
        assert scheduler.blocks_wanted >= 0

    def pull(self, sequence: Sequence) -> None:
        if sequence in self.in_hand:
            self.write(sequence, sequence.shared_tokens, len(sequence.work.token_ids))
            self.scheduler.pulled(sequence)

    def write(self, sequence: Sequence, first: int, end: int) -> None:
        for i in range(first, end):
            block = sequence.block_ids[i // BLOCK]
            assert self.pool.holders(block) == 1 or self.memory.get((block, i % BLOCK)) == tuple(
                sequence.token_ids[: i + 1]
            ), "written to a block of others"
            self.memory[block, i % BLOCK] = tuple(sequence.token_ids[: i + 1])

    def run(self, step: Step) -> None:
        ends = {id(s): len(s.token_ids) - (step.left if s is step.sequences[-1] else 0) for s in step.sequences}
        for sequence in step.sequences:
            for i in range(sequence.num_cached):
                held = self.memory[sequence.block_ids[i // BLOCK], i % BLOCK]
                assert held == tuple(sequence.token_ids[: i + 1]), "KV of another text"
            self.write(sequence, sequence.num_cached, ends[id(sequence)])
        self.scheduler.stepped(step, 1.0, 0.0)
        for sequence in step.sequences:
            if ends[id(sequence)] == len(sequence.token_ids):
                self.take(sequence, step.is_prefill)

    def take(self, sequence: Sequence, was_prefill: bool) -> None:
        token = next_token(sequence.token_ids)
        sequence.append(token)
        self.told[sequence.request_id].append(token)
        if isinstance(sequence.work, Prefill):
            blocks = self.end(sequence)
            self.later.append((self.turns + self.delay(), lambda: self.pool.free(blocks)))  # a lease
        elif sequence.finish_reason:
            self.pool.free(self.end(sequence))
        elif was_prefill:
            self.scheduler.prefilled(sequence)

    def end(self, sequence: Sequence) -> list[int]:
        self.scheduler.remove(sequence)
        self.in_hand.remove(sequence)
        blocks, sequence.block_ids = sequence.block_ids, []
        return blocks

    def run_out(self) -> None:
        """To the end of all; a wait without a step is never longer than what pulls and leases take."""
        still = 0
        while self.in_hand or self.later:
            still = 0 if self.turn() else still + 1
            assert still < LONGEST_WAIT, "nothing moves any more"


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(f"preempt {seed}")
    return [rng.randrange(5) for _ in range(length)]


def test_more_start_than_their_longest_answers_would_allow() -> None:
    """Of 100 blocks each would reserve 51; what it needs is one, and room for the next tokens."""
    machine = Machine(blocks=100, tokens=64)
    for i in range(4):
        machine.add(make_sequence(Generate, prompt(4, i), 201, f"{i}"))
    machine.turn()
    assert (machine.scheduler.running, machine.scheduler.queued, machine.pool.used) == (4, 0, 4)
    assert machine.scheduler.blocks_wanted == 4 * 50


def test_the_last_to_arrive_gives_way_and_its_answer_is_the_same() -> None:
    """The first one is never put back, and each token is told once."""
    machine = Machine(blocks=64, tokens=64)
    sequences = [machine.add(make_sequence(Generate, prompt(8, i), 120, f"{i}")) for i in range(3)]
    machine.run_out()
    assert [s.preemptions > 0 for s in sequences] == [False, False, True]
    assert all(machine.told[s.request_id] == answer(s) for s in sequences)
    assert machine.pool.used == 0


def test_the_lowest_priority_gives_way_before_the_last_to_arrive() -> None:
    machine = Machine(blocks=64, tokens=64)
    for name, priority in (("low", 9), ("high", 1), ("middle", 5)):
        machine.add(make_sequence(Generate, prompt(8, priority), 120, name, priority))
    machine.run_out()
    assert machine.preempted[0].request_id == "low"
    assert "high" not in {s.request_id for s in machine.preempted}


def test_who_gave_way_goes_on_before_all_who_wait_but_those_of_a_higher_priority() -> None:
    first, second, low, equal, higher = (
        make_sequence(Generate, [1], 4, f"{i}", priority) for i, priority in enumerate((5, 5, 9, 5, 1))
    )
    queue = PreemptedQueue()
    assert queue.before(None) is None
    for number, sequence in enumerate((first, second, low)):
        sequence.number = number
    for sequence in (low, second, first):
        queue.add(sequence)
    assert [queue.before(waiting) for waiting in (None, equal, low, higher)] == [first, first, first, None]
    queue.remove(first)
    queue.remove(second)
    assert queue.before(equal) is None


def test_what_it_had_read_is_found_again_as_far_as_nobody_needed_it() -> None:
    """A preempted one reads anew only what was evicted; what it found cached is told of its first start."""
    machine = Machine(blocks=64, tokens=64)
    last = [machine.add(make_sequence(Generate, prompt(8, i), 120, f"{i}")) for i in range(3)][-1]
    while not machine.preempted:
        machine.turn()
    assert (last.num_cached, last.block_ids) == (0, [])
    assert machine.scheduler.queued_tokens == len(last.token_ids)
    for other in machine.in_hand[:2]:
        machine.pool.free(machine.end(other))
    machine.scheduler.admit()
    assert 0 < last.num_cached < len(last.token_ids)
    assert last.shared_tokens == last.num_cached
    assert last.cached_tokens == 0


def test_a_newcomer_starts_only_where_all_can_write_on() -> None:
    """Between two times that one gives way, all the others write."""
    blocks = 2 * (2 + AHEAD_TOKENS // BLOCK)
    machine = Machine(blocks=blocks - 1, tokens=64)
    first, second = (machine.add(make_sequence(Generate, prompt(8, i), 110, f"{i}")) for i in range(2))
    machine.turn()
    assert [bool(s.block_ids) for s in (first, second)] == [True, False]
    machine.run_out()
    assert not machine.preempted
    exact = Machine(blocks=blocks, tokens=64)
    for i in range(2):
        exact.add(make_sequence(Generate, prompt(8, i), 110, f"{i}"))
    exact.turn()
    assert all(s.block_ids for s in exact.in_hand)


def test_one_whose_block_is_under_a_lease_waits_and_keeps_its_own() -> None:
    """Alone it has nobody to give way to: it is counted as waiting, and goes on when the lease has ended."""
    machine = Machine(blocks=30, tokens=64)
    sequence = machine.add(make_sequence(Generate, prompt(8, 1), 100, "alone"))
    machine.turn()
    lease = machine.pool.allocate(26)
    while machine.turn():
        pass
    assert (machine.scheduler.running, machine.scheduler.queued) == (0, 1)
    assert len(sequence.block_ids) == 4
    machine.pool.free(lease)
    machine.run_out()
    assert machine.told["alone"] == answer(sequence)
    assert not machine.preempted


def test_a_preempted_one_can_be_removed() -> None:
    machine = Machine(blocks=64, tokens=64)
    last = [machine.add(make_sequence(Generate, prompt(8, i), 120, f"{i}")) for i in range(3)][-1]
    while not machine.preempted:
        machine.turn()
    assert machine.end(last) == []
    machine.run_out()
    assert machine.pool.used == 0


ARRIVAL = st.tuples(
    st.integers(0, 30),  # turns since the one before
    st.sampled_from([Generate, Generate, Prefill, Decode]),
    st.integers(1, 24),  # prompt
    st.integers(2, 110),  # answer
    st.sampled_from([1, 5, 5, 5, 9]),
    st.integers(0, 3),  # few texts, so that many begin alike
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=st.lists(ARRIVAL, min_size=1, max_size=12),
    blocks=st.integers(34, 60),
    ahead=st.sampled_from([0, 8, AHEAD_TOKENS]),
    batch=st.integers(1, 5),
    delays=st.randoms(use_true_random=False),
)
def test_whatever_comes_all_end_with_the_answers_of_ample_memory(
    arrivals: list[tuple[int, type[AnyWork], int, int, int, int]],
    blocks: int,
    ahead: int,
    batch: int,
    delays: random.Random,
) -> None:
    """Also where much less is left free than the scheduler does, so that many give way and some wait for leases."""
    machine = Machine(blocks=blocks, batch=batch, tokens=16, delay=lambda: delays.randrange(1, 20))
    sequences = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption, "AHEAD_TOKENS", ahead)
        for i, (gap, kind, length, max_tokens, priority, text) in enumerate(arrivals):
            for _ in range(gap):
                machine.turn()
            sequences.append(machine.add(make_sequence(kind, prompt(length, text), max_tokens, f"{i}", priority)))
        machine.run_out()
    for sequence in sequences:
        expected = answer(sequence)
        told = machine.told[sequence.request_id]
        assert told == (expected[:1] if isinstance(sequence.work, Prefill) else expected)
    assert machine.pool.used == 0
    assert (machine.scheduler.queued, machine.scheduler.running, machine.scheduler.blocks_wanted) == (0, 0, 0)
