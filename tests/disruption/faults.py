"""Everything that is done to a cluster: each fault strikes when its block begins and is repaired when it ends.

What needs no repair comes back by itself: an engine that was killed is started again by its stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.disruption.cluster import Cluster, url_of
from tests.hosts import Host
from tests.integration.clients import ask_all

Strike = Callable[[Cluster, Sequence[Host]], AbstractAsyncContextManager[None]]
NOTICED_S = 90.0
NOBODY = ".250"
"""The last part of an address that no host has."""


@dataclass(frozen=True)
class Fault:
    """``strike`` on the hosts of ``part`` with these numbers, repaired after ``hold_s``."""

    name: str
    injected: str
    repaired: str
    strike: Strike
    part: str
    numbers: tuple[int, ...] = (0,)
    hold_s: float = 0.0
    """0: repaired as soon as it has struck."""

    def hosts(self, cluster: Cluster) -> list[Host]:
        """Those that are struck."""
        return [cluster.at(self.part)[number] for number in self.numbers]


@contextlib.asynccontextmanager
async def kill_engine(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    for host in hosts:
        cluster.engine(host).kill()
    yield


@contextlib.asynccontextmanager
async def stop_engine(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    engines = [cluster.engine(host) for host in hosts]
    for engine in engines:
        engine.suspend()
    try:
        yield
    finally:
        resume(engines)


@contextlib.asynccontextmanager
async def stop_host(_: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """All that was started there."""
    stopped = [process for host in hosts for process in host.processes()]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        resume(stopped)


@contextlib.asynccontextmanager
async def kill_server(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """Triton alone is killed: its stubs and engines have to notice."""
    for host in hosts:
        await asyncio.to_thread(cluster.kill, host, lambda p: p.name() == "tritonserver")
    yield
    for host in hosts:
        cluster.serve(host)


@contextlib.asynccontextmanager
async def lose_host(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """The power goes: nobody there says a word any more, not even that a connection is closed."""
    for host in hosts:
        host.cut()
        await asyncio.to_thread(cluster.kill, host, lambda _: True)
    yield
    for host in hosts:
        await asyncio.to_thread(host.mend)
        cluster.serve(host)


@contextlib.asynccontextmanager
async def cut_link(_: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    for host in hosts:
        host.cut()
    try:
        yield
    finally:
        for host in hosts:
            await asyncio.to_thread(host.mend)


@contextlib.asynccontextmanager
async def spoil_link(_: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """Every frame is late by 40 ms, and one of a hundred is lost, in both directions."""
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(host.bad_link(delay_s=0.04, loss=0.01))
        yield


@contextlib.asynccontextmanager
async def flap_names(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """The workers' name stands for nobody, then for others, for each as long as it takes to look it up twice."""
    part = cluster.part_of(hosts[0])
    all_of_them = [host.address for host in cluster.at(part)]
    others = [host.address for host in cluster.workers if cluster.part_of(host) != part]
    try:
        for addresses in ([], [*others, others[0].rsplit(".", 1)[0] + NOBODY], all_of_them[:1]):
            cluster.name(part, addresses)
            await asyncio.sleep(5.0)
        yield
    finally:
        cluster.name(part, all_of_them)


@contextlib.asynccontextmanager
async def fill_disk(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """The disk below KV memory: no byte is left on it. New prompts are read until each worker has noticed."""
    fillers = [cluster.disk(host) / "filler" for host in hosts]
    before = now = await asyncio.to_thread(disk_errors, cluster, hosts)
    try:
        for filler in fillers:
            await asyncio.to_thread(fill, filler)
        end = time.monotonic() + NOTICED_S
        while not all(count > then for count, then in zip(now, before, strict=True)):
            assert time.monotonic() < end, f"no disk was found full within {NOTICED_S:g} s"
            prompts = [{"input_ids": random.choices(range(100, 40000), k=128), "max_tokens": 1} for _ in range(4)]
            answers = await ask_all(url_of(cluster.gateways[0]), "llm", prompts, at_once=4)
            assert [answer.error for answer in answers] == [None] * 4
            now = await asyncio.to_thread(disk_errors, cluster, hosts)
        yield
    finally:
        for filler in fillers:
            filler.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def restart_server(cluster: Cluster, hosts: Sequence[Host]) -> AsyncIterator[None]:
    """As one who takes care does it."""
    for host in hosts:
        status = await asyncio.to_thread(cluster.terminate, host)
        assert status == 0, f"{host.name} ended with {status}"
    yield
    for host in hosts:
        cluster.serve(host)


def resume(processes: Sequence[psutil.Process]) -> None:
    """Let stopped processes go on, if they are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)


def disk_errors(cluster: Cluster, hosts: Sequence[Host]) -> list[int]:
    """How often each worker could not write to its disk, or read from it."""
    replies = [cluster.hello(host) for host in hosts]
    return [reply.load.tier.errors if reply and reply.load.tier else 0 for reply in replies]


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


AGAIN = "by itself"
FAULTS = [
    Fault("prefill engine killed", "SIGKILL to the engine", AGAIN, kill_engine, "prefill"),
    Fault("decode engine killed", "SIGKILL to the engine", AGAIN, kill_engine, "decode"),
    Fault("prefill engine stopped", "SIGSTOP to the engine", "SIGCONT after 8 s", stop_engine, "prefill", (1,), 8.0),
    Fault("decode engine stopped", "SIGSTOP to the engine", "SIGCONT after 8 s", stop_engine, "decode", (1,), 8.0),
    Fault("prefill Triton killed", "SIGKILL to tritonserver", "served again", kill_server, "prefill"),
    Fault("decode Triton killed", "SIGKILL to tritonserver", "served again", kill_server, "decode"),
    Fault("decode host stopped", "SIGSTOP to all processes", "SIGCONT after 8 s", stop_host, "decode", (0,), 8.0),
    Fault("prefill host lost", "link cut, SIGKILL to all", "mended, served again", lose_host, "prefill", (1,)),
    Fault("decode host lost", "link cut, SIGKILL to all", "mended, served again", lose_host, "decode", (1,)),
    Fault("prefill link cut", "link down", "up after 8 s", cut_link, "prefill", (0,), 8.0),
    Fault("decode link cut", "link down", "up after 8 s", cut_link, "decode", (0,), 8.0),
    Fault("prefill link bad", "40 ms and 1 % loss each way", "ended after 10 s", spoil_link, "prefill", (1,), 10.0),
    Fault("decode link bad", "40 ms and 1 % loss each way", "ended after 10 s", spoil_link, "decode", (1,), 10.0),
    Fault("names flap", "decode resolves to none, to others, to one", "to both", flap_names, "decode", (0, 1)),
    Fault("disks full", "no byte left under the second tier", "emptied after 8 s", fill_disk, "prefill", (0, 1), 8.0),
    Fault("decode gone", "SIGKILL to both hosts' processes", "served again", kill_server, "decode", (0, 1)),
    Fault("gateway killed", "SIGKILL to tritonserver", "served again", kill_server, "gateway"),
    Fault("gateway lost", "link cut, SIGKILL to all", "mended, served again", lose_host, "gateway", (1,)),
]
