"""A fault every 10 seconds under mixed load: nothing hangs, nothing is lost. ``make soak-faults``; needs root.

Starts a deployment over six hosts made of namespaces, as ``tests/disruption/`` does, and sends it short prompts, chats
and long prompts, greedy and sampled, 64 at once, a tenth of whose clients leave. Each fault is drawn, with a seed, from
those that are tested there one by one; several may overlap. Every answer is compared with the undisturbed one. Prints
what was injected and repaired, and memory; exit status 1 if an answer was wrong or lost, or anything is left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from memory import process_name
from rich.console import Console
from rich.table import Table
from tests.disruption.cluster import Cluster, make_cluster
from tests.disruption.faults import FAULTS, Fault, restart_server
from tests.disruption.load import Load, ask_undisturbed, nothing_left
from tests.disruption.mixed import make_mixture
from tests.disruption.scenario import strike
from tests.hosts import Host

from tandem.deployment import Limits

EVERY_S = 10.0
LIMITS = Limits(max_queue_s=100.0, max_migrations=10)
"""Faults overlap: they may leave few workers for a while, and each may take one more of a request's workers."""
LEAVE_SHARE = 0.1
LOOK_S = 5.0
MIB = 1 << 20


@dataclass
class Soak:
    """What was done, and what was seen."""

    cluster: Cluster
    load: Load
    draw: random.Random
    struck: set[Host] = field(default_factory=set)
    """Hosts whose fault is not over."""
    injected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[int]] = field(default_factory=dict)
    """Resident bytes by kind of process, the largest one at each look."""

    async def run(self, seconds: float) -> None:
        """Strike, and strike again; then wait for the last repairs."""
        end = time.monotonic() + seconds
        running: list[asyncio.Task[None]] = []
        watcher = asyncio.create_task(self._watch())
        try:
            while time.monotonic() < end:
                if (fault := self._choose()) is not None:
                    running.append(asyncio.create_task(self._strike(fault)))
                await asyncio.sleep(EVERY_S)
                for task in filter(asyncio.Task.done, running):
                    task.result()
            await asyncio.gather(*running)
        finally:
            for task in (watcher, *running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)  # the first one's is the one that is told of

    def _choose(self) -> Fault | None:
        """One whose hosts are well, and that leaves a gateway, and a worker of each stage where it strikes one alone;
        None where there is none."""
        restarts = [Fault(f"{p} restarted", "", "", restart_server, p) for p in ("gateway", "prefill", "decode")]
        faults = [*FAULTS, *restarts]
        for fault in self.draw.sample(faults, len(faults)):
            numbers = fault.numbers if len(fault.numbers) > 1 else (self.draw.randrange(2),)
            hold_s = self.draw.uniform(0.5, 2.0) * fault.hold_s
            chosen = replace(fault, numbers=numbers, hold_s=hold_s)
            if self._leaves_enough(chosen):
                return chosen
        return None

    def _leaves_enough(self, fault: Fault) -> bool:
        hosts = set(fault.hosts(self.cluster))
        others = {part: set(self.cluster.at(part)) - self.struck for part in ("gateway", "prefill", "decode")}
        if not others[fault.part] >= hosts:
            return False
        others[fault.part] -= hosts if len(hosts) == 1 else set()
        return all(others.values())

    async def _strike(self, fault: Fault) -> None:
        hosts = fault.hosts(self.cluster)
        self.struck.update(hosts)
        self.injected[fault.name] += 1
        print(f"{time.strftime('%H:%M:%S')} {fault.name}: {', '.join(host.name for host in hosts)}", flush=True)
        await strike(self.cluster, self.load, fault, hosts)
        self.repaired[fault.name] += 1
        self.struck.difference_update(hosts)

    async def _watch(self) -> None:
        while True:
            largest: dict[str, int] = {}
            for host in [*self.cluster.gateways, *self.cluster.workers]:
                for process in await asyncio.to_thread(host.processes):
                    try:
                        kind = process_name(process).rsplit(" ", 1)[0]
                        largest[kind] = max(largest.get(kind, 0), process.memory_info().rss)
                    except psutil.Error:
                        continue
            for kind, resident in largest.items():
                self.memory.setdefault(kind, []).append(resident)
            await asyncio.sleep(LOOK_S)


async def soak(cluster: Cluster, minutes: float, seed: int) -> tuple[Soak, str]:
    """Run it; what happened, and why it failed, if it did."""
    requests = await asyncio.to_thread(lambda: ask_undisturbed(cluster, make_mixture(cluster)))
    print(f"{len(requests.asked)} different requests", flush=True)
    load = Load(cluster, requests, leave_share=LEAVE_SHARE, seed=seed)
    this = Soak(cluster, load, random.Random(seed))
    try:
        async with load:
            await this.run(60 * minutes)
        await nothing_left(cluster)
    except (AssertionError, TimeoutError) as error:
        return this, str(error)
    return this, "; ".join(load.wrong[:3])


def show(this: Soak, problem: str, console: Console) -> None:
    """Print what happened."""
    table = Table(title="faults")
    for heading in ("fault", "injected", "repaired"):
        table.add_column(heading)
    for name, count in sorted(this.injected.items()):
        table.add_row(name, str(count), str(this.repaired[name]))
    console.print(table)
    table = Table(title="memory, the largest process of each kind [MiB]")
    for heading in ("process", "at first", "most", "in the end"):
        table.add_column(heading)
    for name, sizes in sorted(this.memory.items()):
        table.add_row(name, *(f"{size / MIB:.0f}" for size in (sizes[0], max(sizes), sizes[-1])))
    console.print(table)
    load = this.load
    verdict = f"LOST: {problem}" if problem else "nothing hung, nothing was lost, nothing is left"
    console.print(
        f"{this.injected.total()} faults injected, {this.repaired.total()} repaired; {load.done} answers, each the "
        f"undisturbed one; {load.retried} times asked again at the other gateway; {load.left} clients left; slowest "
        f"{load.slowest:.1f} s; {verdict}"
    )


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tandem-faults-") as directory,
        make_cluster(Path(directory), LIMITS) as cluster,
    ):
        this, problem = asyncio.run(soak(cluster, options.minutes, options.seed))
        show(this, problem, Console(width=140))
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main()
