"""One deployment over four hosts: gateway, prefill, and decode workers that join, drain, die and return under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as grpc_aio

from tandem.deployment import Deployment, Kv, Model, Routing, Server, Worker, to_json
from tandem.kv.blocks import BlockPool
from tests.checkpoints import make_random_model
from tests.hosts import Host, Hosts, make_hosts
from tests.integration.clients import Answer, ask, ask_all
from tests.integration.groups.test_hosts import PORTS, wait_ready
from tests.unit.engines.torch.support import generate, make_prompts, make_runner, make_sequence

BLOCK = 4
TOKENS = 40
STREAMS = 6
DEADLINE_S = 90.0


class Cluster:
    """Servers on hosts, and the name ``decode`` that the gateway resolves to some of them."""

    def __init__(self, hosts: Hosts, file: Path, names: Path) -> None:
        self.hosts, self._file, self._names = hosts, file, names
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.url = f"{hosts[0].address}:{PORTS['grpc_port']}"

    def serve(self, host: Host, *parts: str) -> None:
        """Start ``tandem serve`` on a host, of some parts of the deployment."""
        command = [sys.executable, "-c", "from tandem.cli import app; app()", "serve", str(self._file)]
        command += ["--only", ",".join(parts)]
        self._running[host.name] = host.popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=os.environ
        )

    def gateway(self) -> subprocess.Popen[str]:
        return self._running[self.hosts[0].name]

    def name(self, *hosts: Host) -> None:
        """From now on these are the hosts of the name ``decode``."""
        self._names.write_text("".join(f"{host.address} decode\n" for host in hosts))

    def terminate(self, host: Host) -> subprocess.Popen[str]:
        """Ask a server to stop."""
        for found in host.processes():
            if "serve" in found.cmdline():
                found.send_signal(signal.SIGTERM)
        return self._running.pop(host.name)

    def kill(self, host: Host) -> None:
        """As if the host's power went."""
        for found in host.processes():
            with contextlib.suppress(Exception):
                found.kill()
        self._running.pop(host.name).wait(DEADLINE_S)

    def stop(self) -> None:
        for host in self.hosts.hosts:
            if host.name in self._running:
                self.kill(host)


def worker_at(host: Host) -> str:
    return f"decode@{host.address}:{PORTS['grpc_port']}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return make_random_model("llama", directory, max_position_embeddings=4096, num_hidden_layers=3)


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[Cluster]:
    with make_hosts(4) as hosts:
        common: dict[str, Any] = {"threads": 1, "kv_memory": "64MiB"}
        port = PORTS["grpc_port"]
        deployment = Deployment(
            name="spread",
            model=Model(path=str(model), dtype="float32"),
            server=Server(host="0.0.0.0", **PORTS),
            worker=[
                Worker(name="prefill", stage="prefill", address=f"{hosts[1].address}:{port}", **common),
                Worker(name="decode", stage="decode", address=f"decode:{port}", max_batch_size=64, **common),
            ],
            kv=Kv(block_size=BLOCK, prefix_cache=False, lease_s=5.0, transfer_timeout_s=5.0),
            routing=Routing(policy="round_robin", conditional_disaggregation=False),
        )
        file, names = tmp_path / "spread.json", tmp_path / "hosts"
        file.write_bytes(to_json(deployment))
        cluster = Cluster(hosts, file, names)
        cluster.name(hosts[2])
        hosts[0].run(["mount", "--bind", str(names), "/etc/hosts"])
        cluster.serve(hosts[0], "gateway")
        cluster.serve(hosts[1], "prefill")
        cluster.serve(hosts[2], "decode")
        cluster.serve(hosts[3], "decode")
        try:
            wait_ready(cluster.url, cluster.gateway())
            yield cluster
        finally:
            cluster.stop()


class Load:
    """Streams without a pause, until the end of the block."""

    def __init__(self, client: grpc_aio.InferenceServerClient) -> None:
        self.answers: list[Answer] = []
        self.texts: set[tuple[int, ...]] = set()
        """All different whole answers."""
        self._client = client
        self._ended = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.ensure_future(self._ask_on(n)) for n in range(STREAMS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), DEADLINE_S)

    async def _ask_on(self, number: int) -> None:
        inputs = {"input_ids": [number + 1] * 30, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        while not self._ended:
            self.answers.append(await ask(self._client, "llm", inputs))

    async def until(self, what: str, condition: Callable[[list[Answer]], bool]) -> None:
        """Go on until the answers from now on are as they should be."""
        first, end = len(self.answers), time.monotonic() + DEADLINE_S
        while not condition(self.answers[first:]):
            assert time.monotonic() < end, f"{what}: {[a.error or a.facts for a in self.answers[-STREAMS:]]}"
            await asyncio.sleep(0.05)

    async def seen_on(self, *hosts: Host) -> None:
        """Until the latest answers come from these hosts, and all of these."""
        wanted = {worker_at(host) for host in hosts}

        def is_so(new: list[Answer]) -> bool:
            latest = new[-2 * STREAMS :]
            return len(new) > 4 * STREAMS and {a.facts.get("decode_worker") for a in latest} == wanted

        await self.until(f"answers from {wanted}", is_so)

    def failed(self, blamed: str | None = None) -> list[str]:
        """Errors that do not blame this worker, of all requests since the last call."""
        answers, self.answers = self.answers, []
        self.texts |= {tuple(answer.output_ids) for answer in answers if answer.error is None}
        return [a.error for a in answers if a.error is not None and not (blamed and blamed in a.error)]


def test_hosts_that_come_and_go(cluster: Cluster, model: Path) -> None:
    hosts = cluster.hosts
    prompts = make_prompts(1, 3, 64, 300, 301)
    runner = make_runner(model, block_size=BLOCK, kv_memory="64MiB")
    pool = BlockPool(runner.cache.num_blocks)
    expected = [generate(runner, [make_sequence(pool, p, max_tokens=TOKENS)], TOKENS)[0] for p in prompts]
    before = hosts[2].traffic()[0]
    inputs = [{"input_ids": p, "max_tokens": TOKENS, "ignore_eos": True} for p in prompts]
    done = asyncio.run(ask_all(cluster.url, "llm", inputs, at_once=4))
    assert [answer.error for answer in done] == [None] * len(prompts)
    assert [answer.output_ids for answer in done] == expected
    moved = [answer.facts["kv_bytes"] for answer in done]
    assert moved == [-(-len(p) // BLOCK) * runner.cache.block_bytes for p in prompts]
    assert hosts[2].traffic()[0] - before > sum(moved)
    asyncio.run(come_and_go(cluster))


async def come_and_go(cluster: Cluster) -> None:
    """One joins, is named no more and hard to reach, is killed and returns; the other drains and leaves: only who was
    on the killed one notices."""
    first, second = cluster.hosts[2], cluster.hosts[3]
    async with grpc_aio.InferenceServerClient(cluster.url) as client, Load(client) as load:
        await load.seen_on(first)
        cluster.name(first, second)
        await load.seen_on(first, second)
        assert load.failed() == []

        cluster.name()
        with second.bad_link(delay_s=0.02, loss=0.01):
            await load.seen_on(first, second)
        cluster.name(first, second)
        assert load.failed() == []

        await asyncio.to_thread(cluster.kill, second)
        await load.seen_on(first)
        cluster.serve(second, "decode")
        await load.seen_on(first, second)
        assert load.failed(blamed=worker_at(second)) == []

        stopped = cluster.terminate(first)
        await load.seen_on(second)
        assert await asyncio.to_thread(stopped.wait, DEADLINE_S) == 0
        await load.seen_on(second)
        assert load.failed() == []

        second.cut()
        await load.until("answers in spite of a cut link", lambda new: sum(not a.error for a in new) > STREAMS)
        second.mend()
        await load.seen_on(second)
        assert load.failed(blamed=worker_at(second)) == []
    assert len(load.texts) == STREAMS  # the same whoever wrote them
