"""A fleet behind the real router on the simulated clock."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from tandem.deployment import Faults, Routing
from tandem.engines.sim.profiles import find_profile
from tandem.engines.sim.timing import prefill_pairs, step_s, transfer_s
from tandem.simulation.cluster import MESSAGE_S, Cluster
from tandem.simulation.fleet import WorkerPlan
from tandem.simulation.oracle import oracle_hit_rate
from tandem.simulation.results import Results
from tandem.simulation.trace import TRACE_BLOCK, Arrival, arrivals, read_trace

TRACE = Path(__file__).parents[3] / "loadtest" / "traces" / "mooncake_conversation_trace.jsonl"
PLAN = WorkerPlan(find_profile("h100-llama-3.1-8b"))
POLICIES = get_args(get_type_hints(Routing)["policy"])


def conversations(count: int, turns: int, rate: float, seed: int = 0) -> list[Arrival]:
    """Chats whose prompts grow from turn to turn, at ``rate`` requests a second in all."""
    rng = random.Random(seed)
    names = iter(range(1_000_000))
    found, at = [], 0.0
    waiting = [(chat, 0, [next(names) for _ in range(8)]) for chat in range(count)]
    while waiting:
        at += rng.expovariate(rate)
        chat, turn, blocks = waiting.pop(rng.randrange(len(waiting)))
        found.append(Arrival(at, f"{chat}-{turn}", TRACE_BLOCK * len(blocks), rng.randrange(1, 200), tuple(blocks)))
        if turn + 1 < turns:
            waiting.append((chat, turn + 1, [*blocks, *(next(names) for _ in range(4))]))
    return found


def run(traffic: list[Arrival], policy: str = "kv", plan: WorkerPlan = PLAN, half: int = 4, **routing: bool) -> Results:
    return Cluster(plan, half, half, msgspec.convert({"policy": policy} | routing, Routing)).run(traffic)


def test_a_lone_request_takes_what_its_parts_take() -> None:
    blocks, answer = 10, 20
    length = blocks * TRACE_BLOCK
    plan = replace(PLAN, max_batch_tokens=length)
    traffic = [Arrival(0.0, "a", length, answer, tuple(range(blocks)))]
    results = run(traffic, plan=plan, conditional_disaggregation=False)
    timing = plan.profile.timing
    read = step_s(timing, length, prefill_pairs(0, length), 0)
    assert results.ttft.mean == pytest.approx(read + 2 * MESSAGE_S)
    written = sum(step_s(timing, 1, 0, length + i) for i in range(answer - 1))
    between = transfer_s(timing, length) + written + 2 * MESSAGE_S
    assert results.inter_token.mean == pytest.approx(between / (answer - 1))
    assert (results.finished, results.hit_rate, results.inter_token.count) == (1, 0.0, answer - 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_and_nothing_is_left(policy: str) -> None:
    traffic = conversations(60, 4, rate=8.0)
    cluster = Cluster(PLAN, 4, 4, msgspec.convert({"policy": policy}, Routing))
    results = cluster.run(traffic)
    assert (results.requests, results.finished, results.failed) == (240, 240, {})
    assert results.inter_token.count == sum(a.output_tokens - 1 for a in traffic)
    for worker in cluster.workers:
        load = worker.load
        assert (load.queued, load.running, load.blocks_used, load.handles_held) == (0, 0, 0, 0)


def test_the_same_traffic_gives_the_same_results() -> None:
    traffic = conversations(30, 4, rate=8.0)
    first, second = (msgspec.structs.replace(run(traffic), wall_s=0.0) for _ in range(2))
    assert first == second


def test_kv_finds_nearly_all_that_one_shared_cache_would_and_halves_the_time_to_first_token() -> None:
    """The beginning of the real trace, on workers whose caches are full before a third of it has come."""
    half, traffic = 8, arrivals(read_trace(TRACE)[:1000], speed=4.0)
    kv, round_robin = (run(traffic, policy, half=half) for policy in ("kv", "round_robin"))
    prefill, everyone = (oracle_hit_rate(traffic, n * PLAN.num_blocks) for n in (half, 2 * half))
    assert everyone >= kv.hit_rate > max(prefill, 0.8 * everyone)  # running requests hold a part of all memory
    assert kv.hit_rate > 0.95 * kv.held_rate > 1.5 * round_robin.hit_rate
    assert kv.hit_rate > 0.95 * kv.shared_rate
    assert kv.ttft.mean < 0.5 * round_robin.ttft.mean
    assert kv.ttft.p99 < 0.5 * round_robin.ttft.p99
    assert kv.inter_token.p99 < round_robin.inter_token.p99
    assert kv.balance < 1.25


def test_two_workers_that_lend_keep_more_prompts_than_either_has_room_for() -> None:
    """Eight prompts in turn, of which six fit into one worker's memory: by the time one comes again, it has gone."""
    num_blocks = PLAN.num_blocks // 6
    traffic = [
        Arrival(
            30.0 * n, str(n), TRACE_BLOCK * num_blocks, 10, tuple(range(n % 8 * num_blocks, (n % 8 + 1) * num_blocks))
        )
        for n in range(32)
    ]
    lending, alone = (
        run(traffic, half=1, lending=lending, conditional_disaggregation=False) for lending in (True, False)
    )
    assert alone.hit_rate == 0.0
    assert lending.hit_rate > 0.5


def test_failures_reach_the_tally() -> None:
    plan = replace(PLAN, faults=Faults(step_share=0.2))
    results = run(conversations(30, 4, rate=8.0), plan=plan)
    assert results.failed.keys() == {"engine_failed"}
    assert results.finished + sum(results.failed.values()) == results.requests == 120


def test_a_simulation_in_which_a_request_never_ends_says_so() -> None:
    with pytest.raises(RuntimeError, match="requests have not ended"):
        run(conversations(30, 4, rate=8.0), plan=replace(PLAN, faults=Faults(hang_after=5)))
