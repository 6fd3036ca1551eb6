"""A fault under load, from the first stream to the look for what is left."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tests.disruption.cluster import Cluster
from tests.disruption.faults import Fault
from tests.disruption.load import Load, Requests, nothing_left
from tests.hosts import Host


@dataclass(frozen=True)
class Row:
    """What happened in one scenario."""

    scenario: str
    injected: str
    repaired: str
    answers: int
    retried: int
    slowest_s: float
    seconds: float

    def cells(self) -> list[str]:
        numbers = [str(self.answers), str(self.retried), f"{self.slowest_s:.1f}", f"{self.seconds:.0f}"]
        return [self.scenario, self.injected, self.repaired, *numbers]


async def run_fault(cluster: Cluster, requests: Requests, fault: Fault) -> Row:
    """Strike under 64 streams, repair, and go on until those who were struck have work again."""
    began = time.monotonic()
    hosts = fault.hosts(cluster)
    async with Load(cluster, requests) as load:
        await load.more_tokens(300)
        await strike(cluster, load, fault, hosts)
    assert not load.wrong, load.wrong[:3]
    await nothing_left(cluster)
    seconds = time.monotonic() - began
    return Row(fault.name, fault.injected, fault.repaired, load.done, load.retried, load.slowest, seconds)


async def strike(cluster: Cluster, load: Load, fault: Fault, hosts: list[Host]) -> None:
    """Under a load that runs already."""
    is_gateway = fault.part == "gateway"
    if is_gateway:
        load.struck.update(hosts)
    async with fault.strike(cluster, hosts):
        await asyncio.sleep(fault.hold_s)
    for host in hosts:
        await asyncio.to_thread(cluster.await_ready, host)
    if is_gateway:
        await load.answers_from(hosts)
        load.struck.difference_update(hosts)
    else:
        await load.used_again(hosts)
