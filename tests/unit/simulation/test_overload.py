"""Ten times what the workers can do, on the simulated clock, through the admission that serves."""

from __future__ import annotations

import random

import pytest

from tandem.deployment import Limits, Routing
from tandem.engines.sim.profiles import find_profile
from tandem.simulation.cluster import Cluster
from tandem.simulation.fleet import WorkerPlan
from tandem.simulation.results import Results
from tandem.simulation.trace import TRACE_BLOCK, Arrival

PLAN = WorkerPlan(find_profile("h100-llama-3.1-8b"))
CAPACITY = 5.0
"""Requests a second that a worker of each stage can read and write, about, where both read."""
MAX_QUEUE_S = 3.0
SECONDS = 120.0


def offer(rate: float, tenants: dict[str, float], *, priority: int = 5, seconds: float = SECONDS) -> list[Arrival]:
    """Requests at ``rate`` a second, no two alike, shared out among the tenants by weight."""
    rng, found, at = random.Random(0), [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        blocks, number = rng.randint(8, 24), len(found)
        found.append(
            Arrival(
                at,
                f"{number}",
                TRACE_BLOCK * blocks,
                rng.randint(1, 200),
                tuple(range(24 * number, 24 * number + blocks)),
                priority=priority,
                tenant=rng.choices(list(tenants), list(tenants.values()))[0],
            )
        )
    return found


def run(traffic: list[Arrival]) -> Results:
    cluster = Cluster(PLAN, 1, 1, Routing(), limits=Limits(max_queue_s=MAX_QUEUE_S))
    results = cluster.run(traffic)
    assert results.failed == {}
    assert results.finished + sum(results.refused.values()) == results.requests == len(traffic)
    for worker in cluster.workers:
        load = worker.load
        assert (load.queued, load.running, load.blocks_used, load.handles_held) == (0, 0, 0, 0)
    return results


def goodput(results: Results) -> float:
    """Tokens of finished requests a second."""
    return sum(results.tokens_of.values()) / results.simulated_s


@pytest.fixture(scope="module")
def flooded() -> Results:
    """A tenant that offers as much as can be done, and one that offers ten times as much."""
    return run(offer(11.0 * CAPACITY, {"light": 1.0, "heavy": 10.0}))


def test_ten_times_the_load_takes_nothing_from_what_is_done(flooded: Results) -> None:
    peak = max((run(offer(share * CAPACITY, {"": 1.0}, seconds=60.0)) for share in (0.8, 1.1)), key=goodput)
    assert goodput(flooded) >= 0.9 * goodput(peak)
    assert flooded.ttft.p99 <= MAX_QUEUE_S + 2 * peak.ttft.p99
    assert flooded.inter_token.p99 <= 1.5 * peak.inter_token.p99
    assert sum(flooded.refused.values()) > 0.8 * flooded.requests
    assert flooded.refused["waited"] < 0.05 * flooded.requests  # all others learn of it at once
    assert flooded.most_waiting < 3 * MAX_QUEUE_S * CAPACITY


def test_a_light_tenant_gets_its_share_beside_a_heavy_one(flooded: Results) -> None:
    """Half is what each gets, though one asks for ten times as much."""
    served = flooded.tokens_of
    assert served["light"] > 0.4 * sum(served.values())
    traffic = offer(5.25 * CAPACITY, {"light": 0.25, "heavy": 5.0}, seconds=60.0)
    wanted = sum(a.num_tokens + a.output_tokens for a in traffic if a.tenant == "light")
    assert run(traffic).tokens_of["light"] > 0.9 * wanted  # who wants less than its share gets all of it


def test_a_higher_priority_is_not_held_up_by_a_flood_of_lower_ones() -> None:
    flood, rng = offer(5 * CAPACITY, {"batch": 1.0}, priority=9, seconds=60.0), random.Random(1)
    urgent = [
        Arrival(rng.uniform(0, 60.0), f"u{n}", TRACE_BLOCK, 50, (10**6 + n,), priority=1, tenant="urgent")
        for n in range(100)
    ]
    results = run(sorted([*flood, *urgent], key=lambda arrival: arrival.at))
    assert results.tokens_of["urgent"] == len(urgent) * (TRACE_BLOCK + 50)
