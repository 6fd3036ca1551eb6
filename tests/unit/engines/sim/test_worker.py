"""The simulated worker on a clock that the test moves: what happens, and exactly when."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tandem.deployment import Faults
from tandem.engines.sim.faults import Crash
from tandem.engines.sim.profiles import PROFILES
from tandem.engines.sim.timing import Timing, prefill_pairs, step_s, transfer_s
from tandem.engines.sim.tokens import expected_answer
from tandem.engines.sim.worker import SimulatedWorker
from tandem.kv.leases import LeaseTable
from tandem.messages import (
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Lender,
    Prefill,
    Prefilled,
    Pulled,
    Sampling,
    Stopping,
    Tokens,
)
from tandem.simulation.fleet import Clock, DirectTransfer, WorkerPlan, make_worker

TIMING = Timing(
    overhead_s=0.001,
    weights_s=0.010,
    token_s=0.0002,
    pair_s=1e-7,
    context_s=1e-6,
    kv_bytes_per_token=1000.0,
    transfer_latency_s=0.002,
    transfer_bytes_per_s=1e6,
)
PLAN = WorkerPlan(
    replace(PROFILES["h100-llama-3.1-8b"], timing=TIMING, kv_bytes=2_000_000),
    block_size=16,
    max_batch_size=8,
    max_batch_tokens=1000,
)


class World:
    """A prefill and a decode worker, and everything that they have said with the time."""

    def __init__(self, plan: WorkerPlan = PLAN, *, coarse: bool = False) -> None:
        self.clock = Clock()
        grantors: dict[str, LeaseTable] = {}
        transfer = DirectTransfer(grantors, lambda _worker: None)
        self.prefill, self.decode = (
            make_worker(plan, f"{stage}_0", stage, self.clock, grantors, transfer, coarse=coarse)
            for stage in ("prefill", "decode")
        )
        self.decode.handover.peers["prefill_0"] = self.prefill.info
        self.said: list[tuple[float, EngineEvent]] = []

    def run(self, until: float = 1e9) -> None:
        """Move the clock from one thing to the next."""
        while True:
            for worker in (self.prefill, self.decode):
                self._call(worker)
            times = [t for w in (self.prefill, self.decode) if (t := w.next_at) is not None]
            if not times or min(times) > until:
                break
            self.clock.now = max(self.clock.now, min(times))
        self.clock.now = max(self.clock.now, until) if until < 1e9 else self.clock.now

    def _call(self, worker: SimulatedWorker) -> None:
        while True:
            self.said += [(self.clock.now, event) for event in worker.advance(self.clock.now)]
            if worker.next_at is None or worker.next_at > self.clock.now:
                return

    def of(self, request_id: str) -> list[tuple[float, EngineEvent]]:
        return [(at, event) for at, event in self.said if event.request_id == request_id]

    def last(self, request_id: str) -> EngineEvent:
        return self.of(request_id)[-1][1]


def make(kind: type, request_id: str, length: int, max_tokens: int = 5, **fields: Any) -> Any:
    rng = random.Random(request_id)
    return kind(
        request_id=request_id,
        token_ids=[rng.randrange(1000) for _ in range(length)],
        sampling=Sampling(seed=7),
        stopping=Stopping(max_tokens=max_tokens),
        **fields,
    )


def as_decode(world: World, work: Prefill) -> Decode:
    end = world.last(work.request_id)
    assert isinstance(end, Prefilled)
    assert end.handle is not None
    fields = {f: getattr(work, f) for f in Generate.__struct_fields__}
    answer = expected_answer(7, work.token_ids, 1, world.prefill.info.vocab_size)
    return Decode(**fields | {"output_ids": answer}, handle=end.handle)


def test_a_request_through_both_stages_takes_what_the_timing_says() -> None:
    world = World()
    work = make(Prefill, "a", 100)
    world.prefill.submit([work], 0.0)
    world.run()
    read = step_s(TIMING, 100, prefill_pairs(0, 100), 0)
    assert [(at, type(e)) for at, e in world.of("a")] == [(read, Tokens), (read, Prefilled)]
    assert world.prefill.load.handles_held == 1

    world.decode.submit([as_decode(world, work)], read)
    world.run()
    there = read + transfer_s(TIMING, 100)
    times = [there]
    for written in range(4):
        times.append(times[-1] + step_s(TIMING, 1, 0, 100 + written))
    events = world.of("a")[2:]
    assert [type(e) for _, e in events] == [Pulled, Tokens, Tokens, Tokens, Tokens, Finished]
    assert [at for at, _ in events] == pytest.approx([*times, times[-1]])
    assert world.prefill.load.handles_held == world.prefill.load.blocks_used == world.decode.load.blocks_used == 0
    tokens = [t for _, e in world.of("a") if isinstance(e, Tokens) for t in e.token_ids]
    assert tokens == expected_answer(7, work.token_ids, 5, world.prefill.info.vocab_size)


def test_a_cached_beginning_costs_nothing_but_its_attention() -> None:
    world = World()
    first = make(Prefill, "a", 960)
    again = msgspec.structs.replace(first, request_id="b", token_ids=[*first.token_ids, 1, 2, 3])
    world.prefill.submit([first], 0.0)
    world.run()
    began = world.clock.now
    world.prefill.submit([again], began)
    world.run()
    assert world.clock.now - began == pytest.approx(step_s(TIMING, 3, prefill_pairs(960, 3), 0))
    assert world.last("b") == msgspec.structs.replace(world.last("b"), cached_tokens=960, queue_s=0.0)


@pytest.mark.parametrize("lender", ["decode_0", "unknown"])
def test_who_is_lent_nothing_reads_at_once(lender: str) -> None:
    """By a worker that has nothing, or that it is not paired with; no other work comes to wake it."""
    world = World()
    world.prefill.handover.peers["decode_0"] = world.decode.info
    world.prefill.submit([make(Prefill, "a", 100, lender=Lender(worker_id=lender, num_tokens=96))], 0.0)
    world.run()
    asked = transfer_s(TIMING, 96)
    assert world.clock.now == pytest.approx(asked + step_s(TIMING, 100, prefill_pairs(0, 100), 0))
    assert isinstance(world.last("a"), Prefilled)
    assert (world.prefill.load.borrows_failed, world.prefill.load.queued) == (1, 0)


def test_a_long_prompt_is_read_in_steps() -> None:
    world = World()
    world.prefill.submit([make(Prefill, "a", 1700)], 0.0)
    world.run()
    two = step_s(TIMING, 1000, prefill_pairs(0, 1000), 0) + step_s(TIMING, 700, prefill_pairs(1000, 700), 0)
    assert world.clock.now == pytest.approx(two)
    load = world.prefill.load
    assert (load.prefill_steps, load.prefill_tokens, load.steps) == (2, 1700, 2)
    assert load.prefill_seconds == pytest.approx(two)


def test_queued_tokens_are_those_still_to_be_read() -> None:
    world = World()
    world.prefill.submit([make(Prefill, f"{i}", 700) for i in range(3)], 0.0)
    assert world.prefill.load.queued_tokens == 2100
    world.run(until=0.001)
    assert world.prefill.load.queued_tokens == 2100
    world.run()
    assert world.prefill.load.queued_tokens == 0


def test_whoever_is_cancelled_in_a_step_says_nothing_more_and_the_others_go_on() -> None:
    world = World()
    world.decode.submit([make(Generate, "a", 10), make(Generate, "b", 10)], 0.0)
    world.run(until=0.005)
    world.decode.cancel(["a"])
    world.run()
    assert [type(e) for _, e in world.of("a")] == [Finished]
    assert world.of("a")[0][0] == 0.005
    last = world.last("b")
    assert isinstance(last, Finished)
    assert last.reason == "length"
    assert world.decode.load.blocks_used == 0


def test_a_cancelled_pull_leaves_the_lease_to_prefill() -> None:
    world = World()
    work = make(Prefill, "a", 100)
    world.prefill.submit([work], 0.0)
    world.run()
    world.decode.submit([as_decode(world, work)], world.clock.now)
    world.run(until=world.clock.now + 0.01)
    assert world.decode.load.queued == 1
    world.decode.cancel(["a"])
    world.run()
    assert world.last("a") == Finished(request_id="a", reason="cancelled")
    assert (world.decode.load.blocks_used, world.prefill.load.handles_held) == (0, 1)


def test_a_lease_that_runs_out_while_its_bytes_move_is_refused() -> None:
    world = World(replace(PLAN, lease_s=0.05))
    work = make(Prefill, "a", 100)
    world.prefill.submit([work], 0.0)
    world.run()
    world.decode.submit([as_decode(world, work)], world.clock.now)
    world.run()
    end = world.last("a")
    assert isinstance(end, Failed)
    assert end.code == "lease_expired"
    assert world.decode.load.blocks_used == 0


@pytest.mark.parametrize(("share", "code"), [("step_share", "engine_failed"), ("pull_share", "transfer_failed")])
def test_a_share_of_requests_fails_on_demand(share: str, code: str) -> None:
    world = World(replace(PLAN, faults=Faults(**{share: 0.3})))
    work = [make(Prefill, f"{i}", 12) for i in range(100)]
    world.prefill.submit(list(work), 0.0)
    world.run()
    done = [w for w in work if isinstance(world.last(w.request_id), Prefilled)]
    world.decode.submit([as_decode(world, w) for w in done], world.clock.now)
    world.run()
    failed = [e for _, e in world.said if isinstance(e, Failed)]
    assert 15 < len(failed) < 45
    assert {e.code for e in failed} == {code}
    assert len(failed) + sum(isinstance(e, Finished) for _, e in world.said) == 100
    assert world.decode.load.blocks_used == 0


def test_a_crash_and_a_hang_on_demand() -> None:
    world = World(replace(PLAN, faults=Faults(crash_after=3)))
    world.decode.submit([make(Generate, f"{i}", 10) for i in range(2)], 0.0)
    with pytest.raises(Crash, match="after 3 requests"):
        world.decode.submit([make(Generate, "last", 10)], 0.0)
    world = World(replace(PLAN, faults=Faults(hang_after=2)))
    world.decode.submit([make(Generate, "0", 10)], 0.0)
    world.run()
    world.decode.submit([make(Generate, "1", 10)], world.clock.now)
    steps = world.decode.load.steps
    world.run()
    assert (world.of("1"), world.decode.load.steps, world.decode.load.queued) == ([], steps, 1)


@pytest.mark.parametrize("seed", range(5))
def test_many_steps_at_once_are_no_shortcut(seed: int) -> None:
    """A coarse worker ends every answer when one that makes each step by itself does, with as many tokens."""
    rng = random.Random(seed)
    arrivals = sorted((rng.uniform(0, 3), i) for i in range(40))
    lengths = [(rng.randrange(1, 300), rng.randrange(2, 120)) for _ in arrivals]
    ends = []
    for coarse in (False, True):
        world = World(replace(PLAN, profile=replace(PLAN.profile, kv_bytes=50_000_000)), coarse=coarse)
        agenda = [(at, i, make(Prefill, f"{i}", *lengths[i])) for at, i in arrivals]
        while agenda:
            at, _, work = heapq.heappop(agenda)
            world.run(until=at)
            if isinstance(work, Prefill):
                world.prefill.submit([work], at)
                heapq.heappush(agenda, (at + 1.0, len(agenda), work.request_id))
            elif isinstance(world.last(work), Prefilled):
                prefill = make(Prefill, work, *lengths[int(work)])
                world.decode.submit([as_decode(world, prefill)], at)
        world.run()
        finished = {e.request_id: at for at, e in world.said if isinstance(e, Finished)}
        counts = {r: sum(len(e.token_ids) for _, e in world.of(r) if isinstance(e, Tokens)) for r in finished}
        ends.append((finished, counts))
        assert len(finished) == 40
    (fine, fine_counts), (coarse_ends, coarse_counts) = ends
    assert coarse_counts == fine_counts
    assert coarse_ends == pytest.approx(fine)
