"""What a routing decision costs, and a report of the prefix cache: the router alone, without workers and network.

``python loadtest/router_bench.py [--json FILE]``, or ``make bench-router``. Half of the workers do prefill, half
decode.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tandem.deployment import Routing
from tandem.kv.hashes import Hashes, pack_hashes
from tandem.messages import BlocksRemoved, BlocksStored, KvEvent, KvFormat, KvReport, Load, StageName, WorkerInfo
from tandem.routing.router import Plan, Route, Router

ROOT = Path(__file__).parents[1]
WORKERS = (8, 64, 512)
BLOCKS = 100_000
"""Different ones in the index."""
CHAIN = 128
"""Blocks of a conversation."""
NEW = 8
"""Blocks of a prompt that nobody has."""
BLOCK_SIZE = 16
HOLDERS = 2
"""Workers that hold a conversation."""
IN_HAND = 4
"""Requests under way for each worker."""
ROUND = 1000
"""Decisions, or reports, in one measurement."""
PACE_S = 0.01
"""From one request to the next, on the clock that the router is told."""

_KV = KvFormat(
    fingerprint="bench",
    dtype="bfloat16",
    layout="bench",
    block_size=BLOCK_SIZE,
    num_layers=32,
    num_kv_heads=8,
    slice_bytes=2 * BLOCK_SIZE * 128 * 2,
)


Reading = tuple[str, Hashes]
"""A worker, and blocks that it reads."""


@dataclass(frozen=True)
class RouterBenchRow:
    """Rates per second of CPU time on one core, each the median of all rounds."""

    workers: int
    decisions_per_s: float
    """Both stages chosen, both ways weighed, the choice remembered; and the end of a request taken note of."""
    decision_us: float
    events_per_s: float
    """Blocks stored or removed."""


@dataclass(frozen=True)
class RouterBenchReport:
    """All numbers of workers of one run."""

    policy: str
    blocks: int
    prompt_blocks: float
    """Of a prompt, on average."""
    rounds: int
    rows: list[RouterBenchRow]


class Scene:
    """A router whose index is full, and prompts for it."""

    def __init__(self, workers: int, policy: str) -> None:
        self._random = random.Random(workers)
        self.now = 0.0
        self.router = Router(Routing(policy=policy), BLOCK_SIZE, seed=1)  # type: ignore[arg-type]
        self._names = [self._join(number, workers) for number in range(workers)]
        for one in self._names[: workers // 2]:
            for other in self._names[workers // 2 :]:
                self.router.pair(one, other)
        self._chains = [[self._hash() for _ in range(CHAIN)] for _ in range(BLOCKS // CHAIN)]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._next = dict.fromkeys(self._names, 1)
        for chain in self._chains:
            for name in self._random.sample(self._names, HOLDERS):
                self.report(name, [BlocksStored(hashes=chain)])

    def _join(self, number: int, workers: int) -> str:
        stage: StageName = "prefill" if number < workers // 2 else "decode"
        name = f"{stage}_{number}"
        self.router.add(name, stage)
        info = WorkerInfo(
            worker_id=name,
            epoch=1,
            stage=stage,
            engine="bench",
            kv=_KV,
            vocab_size=1 << 17,
            max_model_len=1 << 17,
            max_batch_size=64,
        )
        self.router.join(name, info, _load())
        return name

    def _hash(self) -> int:
        return self._random.getrandbits(64)

    def prompts(self) -> list[Hashes]:
        """Conversations that go on, or begin anew."""
        chains = self._random.choices(self._chains, k=ROUND)
        return [pack_hashes(c[: self._random.randrange(CHAIN + 1)] + self._blocks()) for c in chains]

    def reports(self) -> list[tuple[str, list[KvEvent]]]:
        """Each says that one conversation's last blocks are gone, and others have come; the index does not grow."""
        names = self._random.choices(self._names, k=ROUND)
        return [(n, [BlocksStored(hashes=b), BlocksRemoved(hashes=b)]) for n in names for b in [self._blocks()]]

    def _blocks(self) -> list[int]:
        return [self._hash() for _ in range(NEW)]

    def reading(self, plan: Plan) -> Reading:
        """Who will read the prompt, and which of its blocks."""
        reader, writer = plan.workers
        name = reader or writer
        return name, plan.hashes[int(plan.costs.request.held.item(self._places[name])) :]

    def report(self, name: str, events: list[KvEvent]) -> None:
        """One worker's answer to a poll."""
        report = KvReport(first=self._next[name], events=events)
        self._next[name] = self.router.report(name, 1, _load(), report)


def _load() -> Load:
    return Load(
        blocks_total=20_000,
        steps=2000,
        prefill_steps=1000,
        step_seconds=70.0,
        prefill_seconds=50.0,
        prefill_tokens=1_000_000,
        bytes_pulled=10**10,
        pull_seconds=1.0,
    )


def run_router_bench(rounds: int = 15, policy: str = "kv") -> RouterBenchReport:
    """Measure all numbers of workers; the first round of each only warms up."""
    rows = []
    for workers in WORKERS:
        scene = Scene(workers, policy)
        decisions = [_decide(scene, workers) for _ in range(rounds + 1)][1:]
        events = [_take_in(scene) for _ in range(rounds + 1)][1:]
        rate = statistics.median(decisions)
        rows.append(RouterBenchRow(workers, rate, 1e6 / rate, statistics.median(events)))
    return RouterBenchReport(policy, BLOCKS, CHAIN / 2 + NEW, rounds, rows)


def _decide(scene: Scene, workers: int) -> float:
    """Decisions per second, with a steady number of requests under way. Of each, its route is kept, and which of its
    blocks are read where."""
    prompts, under_way, over = scene.prompts(), deque[tuple[Route, Reading]](), list[Reading]()
    router, most = scene.router, IN_HAND * workers
    began = time.process_time()
    for hashes in prompts:
        scene.now = now = scene.now + PACE_S
        plan = router.plan(hashes, len(hashes) * BLOCK_SIZE + 1, 200, now)
        route = router.commit(plan, now)
        route.sent("prefill")
        under_way.append((route, scene.reading(plan)))
        if len(under_way) > most:
            route, reading = under_way.popleft()
            route.end()
            over.append(reading)
    seconds = time.process_time() - began
    for route, reading in under_way:
        route.end()
        over.append(reading)
    for name, blocks in over:  # workers report what they have read, and then that it is gone again
        read = blocks.tolist()
        scene.report(name, [BlocksStored(hashes=read), BlocksRemoved(hashes=read)])
    return len(prompts) / seconds


def _take_in(scene: Scene) -> float:
    """Blocks stored or removed per second, in reports as a poll brings them."""
    reports = scene.reports()
    began = time.process_time()
    for name, events in reports:
        scene.report(name, events)
    seconds = time.process_time() - began
    return sum(len(event.hashes) for _, events in reports for event in events) / seconds


def table(report: RouterBenchReport) -> Table:
    """The report as a table."""
    result = Table(title=f"Policy {report.policy}, {report.blocks:,} blocks")
    for name in ("workers", "decisions/s", "µs each", "block events/s"):
        result.add_column(name, justify="right")
    for row in report.rows:
        result.add_row(
            f"{row.workers}", f"{row.decisions_per_s:,.0f}", f"{row.decision_us:.1f}", f"{row.events_per_s:,.0f}"
        )
    return result


def main(
    rounds: Annotated[int, typer.Option(help="Measurements per figure.")] = 15,
    policy: Annotated[str, typer.Option(help="Routing policy.")] = "kv",
    json: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "router.json",
) -> None:
    """Measure and print."""
    console = Console()
    with console.status("routing"):
        report = run_router_bench(rounds, policy)
    console.print(table(report))
    json.parent.mkdir(parents=True, exist_ok=True)
    json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))
    console.print(f"written: {json}")


if __name__ == "__main__":
    typer.run(main)
