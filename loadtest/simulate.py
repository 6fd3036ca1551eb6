"""A day's traffic on a simulated clock: ``python loadtest/simulate.py`` replays a trace on fleets of simulated workers,
once for each routing policy, and prints what became of it beside oracles with one shared cache.

Router and admission are those that serve; see ``tandem.simulation``. ``python loadtest/plot_simulation.py`` draws what
came of it.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tandem.deployment import Routing
from tandem.engines.sim.profiles import Profile, find_profile
from tandem.engines.sim.timing import prefill_pairs, step_s
from tandem.simulation.cluster import Cluster
from tandem.simulation.fleet import WorkerPlan
from tandem.simulation.oracle import oracle_hit_rate
from tandem.simulation.results import Results
from tandem.simulation.trace import Arrival, TraceLine, arrivals, read_trace

ROOT = Path(__file__).parents[1]
TRACE = ROOT / "loadtest" / "traces" / "mooncake_conversation_trace.jsonl"
POLICIES: list[str] = list(get_args(get_type_hints(Routing)["policy"]))
WORKERS, LOADS = [8, 64, 512], [0.4, 1.0, 1.3]
TABLE_WIDTH = 130
MOST_JOBS = 2
"""At once, unless told otherwise: one of 512 workers takes up to 4 GB."""
WORKERS_PER_COPY = 128
"""The trace is one hour of a small fleet; a large one gets several copies at once, so that it does not end too soon."""


@dataclass(frozen=True, order=True)
class Scenario:
    """Traffic and a fleet, for each policy to deal with."""

    profile: str
    workers: int
    """Half of them of each stage."""
    load: float
    """Prefill work of the prompts, if nothing were cached, over what the prefill workers can do."""
    requests: int
    """Of the trace."""
    repeats: int

    @property
    def copies(self) -> int:
        """Of the trace, at once."""
        return max(1, self.workers // WORKERS_PER_COPY)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One policy in one scenario."""

    profile: str
    workers: int
    load: float
    speed: float
    """How many times as fast as it was recorded each copy of the trace runs."""
    oracle_hit_rate: float
    """Of one cache of all workers' memory."""
    results: Results


def prefill_seconds(lines: list[TraceLine], profile: Profile) -> float:
    """What one worker would take to read all prompts, one after the other."""
    return sum(step_s(profile.timing, n, prefill_pairs(0, n), 0) for n in (line.input_length for line in lines))


@lru_cache(maxsize=1)
def make_traffic(scenario: Scenario) -> tuple[list[Arrival], float]:
    """The requests, and the trace's speed."""
    lines = read_trace(TRACE)[: scenario.requests]
    length_s = (lines[-1].timestamp - lines[0].timestamp) / 1e3
    work_s = scenario.copies * prefill_seconds(lines, find_profile(scenario.profile))
    speed = scenario.load * (scenario.workers // 2) * length_s / work_s
    return arrivals(lines, speed=speed, copies=scenario.copies, repeats=scenario.repeats), speed


@lru_cache(maxsize=1)
def ask_oracle(scenario: Scenario) -> float:
    """Hit rate of one cache of all workers' memory."""
    blocks = scenario.workers * WorkerPlan(find_profile(scenario.profile)).num_blocks
    return oracle_hit_rate(make_traffic(scenario)[0], blocks)


def simulate(job: tuple[Scenario, str]) -> Run:
    """One policy in one scenario."""
    scenario, policy = job
    traffic, speed = make_traffic(scenario)
    half, routing = scenario.workers // 2, msgspec.convert({"policy": policy}, Routing)
    results = Cluster(WorkerPlan(find_profile(scenario.profile)), half, half, routing).run(traffic)
    return Run(
        profile=scenario.profile,
        workers=scenario.workers,
        load=scenario.load,
        speed=speed,
        oracle_hit_rate=ask_oracle(scenario),
        results=results,
    )


def table(runs: list[Run]) -> Table:
    """What became of it, for the terminal."""
    shown = Table(title="simulated clock")
    for name in ("workers", "load", "policy"):
        shown.add_column(name)
    times = ["TTFT mean", "p50", "p99, s", "inter-token mean", "p50", "p99, ms"]
    for name in [*times, "hits", "held", "one cache", "all memory", "balance", "failed"]:
        shown.add_column(name, justify="right")
    for run in runs:
        r = run.results
        shown.add_row(
            f"{run.workers}",
            f"{run.load:g}",
            r.policy,
            *(f"{value:.2f}" for value in (r.ttft.mean, r.ttft.p50, r.ttft.p99)),
            *(f"{1e3 * value:.1f}" for value in (r.inter_token.mean, r.inter_token.p50, r.inter_token.p99)),
            f"{r.hit_rate:.3f}",
            f"{r.held_rate:.3f}",
            f"{r.shared_rate:.3f}",
            f"{run.oracle_hit_rate:.3f}",
            f"{r.balance:.2f}",
            f"{sum(r.failed.values())}",
        )
    return shown


def main(
    workers: Annotated[list[int] | None, typer.Option(help="In all, half of each stage.  [default: 8 64 512]")] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(help="Prefill work, as if nothing were cached, over capacity.  [default: 0.4 1.0 1.3]"),
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Of routing.  [default: all]")] = None,
    profile: Annotated[str, typer.Option(help="What a worker is.")] = "h100-llama-3.1-8b",
    requests: Annotated[int, typer.Option(help="How many of the trace, from its beginning.")] = 1_000_000,
    repeats: Annotated[int, typer.Option(help="The trace so many times in a row, each with prompts of its own.")] = 1,
    jobs: Annotated[int, typer.Option(help="Simulations at once, a core each.")] = min(MOST_JOBS, os.cpu_count() or 1),
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "simulation.json",
) -> None:
    """Replay the trace, print the table, write the JSON."""
    console = Console(width=max(TABLE_WIDTH, Console().width))
    scenarios = [Scenario(profile, w, x, requests, repeats) for w in workers or WORKERS for x in load or LOADS]
    todo = [(scenario, name) for scenario in scenarios for name in policy or POLICIES]
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = []
    with ProcessPoolExecutor(jobs) as pool:
        for run in pool.map(simulate, todo):
            runs.append(run)
            out.write_bytes(msgspec.json.format(msgspec.json.encode(runs), indent=2))  # what there is, if it ends early
            r = run.results
            console.print(
                f"{run.workers} workers, load {run.load:g}, {r.policy}: {r.simulated_s:,.0f} s in {r.wall_s:.0f} s"
            )
    console.print(table(runs))
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
