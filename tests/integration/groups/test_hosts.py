"""Engine groups over three hosts, behind Triton on the first: the answers of one rank, and the end of a cut link."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tandem.deployment import Deployment, Health, Kv, Limits, Model, Parallel, Routing, Server, Worker, to_json
from tandem.kv.blocks import BlockPool
from tests.checkpoints import make_random_model
from tests.hosts import Hosts, make_hosts
from tests.integration.clients import ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import (
    LONG,
    assert_answers_again,
    assert_new_epoch,
    epoch_of,
    streams_until,
)
from tests.unit.engines.torch.support import generate, make_prompts, make_runner, make_sequence

READY_S = 120.0
STOP_S = 30.0
REQUESTS = 32
TOKENS = 12
BLOCK = 4
PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
"""Of a host that has no other servers."""


@dataclass(frozen=True)
class Cluster:
    """A deployment that runs on hosts; has what tests of a server on this machine ask of ``TritonServer``."""

    hosts: Hosts
    deployment: Deployment

    @property
    def grpc_url(self) -> str:
        return f"{self.hosts[0].address}:{PORTS['grpc_port']}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return make_random_model("llama", directory, max_position_embeddings=4096, num_hidden_layers=3)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Prefill on the first and the second host, decode on the first and the third, each of two ranks."""
    with make_hosts(3) as hosts:
        common: dict[str, Any] = {"threads": 1, "kv_memory": "64MiB", "tensor_parallel_size": 2}
        deployment = Deployment(
            name="hosts",
            model=Model(path=str(model), dtype="float32"),
            server=Server(host="0.0.0.0", **PORTS),
            worker=[
                Worker(name="prefill_0", stage="prefill", hosts=hosts.addresses(0, 1), **common),
                Worker(name="decode_0", stage="decode", hosts=hosts.addresses(0, 2), max_batch_size=64, **common),
            ],
            kv=Kv(block_size=BLOCK, prefix_cache=False, lease_s=5.0, transfer_timeout_s=5.0),
            routing=Routing(conditional_disaggregation=False),
            limits=Limits(max_migrations=0),  # so that clients hear of the cause
            health=Health(silence_s=30.0),
            parallel=Parallel(launch_agent=str(hosts.agent), subnet=hosts.subnet, hang_timeout_s=3.0),
        )
        file = tmp_path_factory.mktemp("deployment") / "hosts.json"
        file.write_bytes(to_json(deployment))
        with serving(hosts, file):
            yield Cluster(hosts, deployment)


@contextlib.contextmanager
def serving(hosts: Hosts, file: Path) -> Iterator[None]:
    """``tandem serve`` on the first host, until the block ends."""
    command = [sys.executable, "-c", "from tandem.cli import app; app()", "serve", str(file)]
    with hosts[0].popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as process:
        try:
            wait_ready(f"{hosts[0].address}:{PORTS['grpc_port']}", process)
            yield
        finally:
            for found in hosts[0].processes():
                if "serve" in found.cmdline():
                    found.send_signal(signal.SIGTERM)
            process.wait(STOP_S)


def answers(grpc_url: str) -> bool:
    """Whether anybody listens there, and answers a request."""
    try:
        return ask_now(grpc_url, "llm", {"input_ids": [1], "max_tokens": 1}).error is None
    except grpc.RpcError:
        return False


def wait_ready(grpc_url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + READY_S
    while not answers(grpc_url):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.5)


def test_hosts_together_say_what_one_rank_says(server: Cluster, model: Path) -> None:
    prompts = make_prompts(1, 3, 4, 64, 90, 300, 301, 500)
    runner = make_runner(model, block_size=BLOCK, kv_memory="64MiB")
    pool = BlockPool(runner.cache.num_blocks)
    expected = [generate(runner, [make_sequence(pool, p, max_tokens=TOKENS)], TOKENS)[0] for p in prompts]
    before = server.hosts[2].traffic()[0]
    inputs = [{"input_ids": p, "max_tokens": TOKENS, "ignore_eos": True} for p in prompts]
    done = asyncio.run(ask_all(server.grpc_url, "llm", inputs, at_once=4))
    assert [answer.error for answer in done] == [None] * len(prompts)
    assert [answer.output_ids for answer in done] == expected
    moved = [answer.facts["kv_bytes"] for answer in done]
    assert moved == [-(-len(p) // BLOCK) * runner.cache.block_bytes for p in prompts]
    assert server.hosts[2].traffic()[0] - before > sum(moved) / 2  # the third host has half of the heads


def test_a_cut_link_under_many_requests(server: Cluster) -> None:
    old = epoch_of(server, "decode_0")
    inputs = [LONG | {"text_input": f"{n} Tell me a very long story."} for n in range(REQUESTS)]
    host = server.hosts[2]
    try:
        done = asyncio.run(streams_until(server, inputs, lambda begun: begun == REQUESTS, host.cut))
    finally:
        host.mend()
    for answer in done:
        assert answer.error is not None
        assert "[worker_lost]" in answer.error
        assert f"rank 1 on {host.address}" in answer.error
        assert "has been silent for 3 s: it is stopped, or its host or link is down" in answer.error
    assert_answers_again(server)
    assert_new_epoch(server, "decode_0", old)
    assert_nothing_left(server)
