"""Workers on another Triton, and two orchestrators that share them: one by BLS on the same server, one by gRPC."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.deployment import Deployment, load_deployment, override, to_json
from tandem.engines.sim.tokens import expected_answer
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import find_engine

SIM = Path(__file__).parents[2] / "deployments" / "sim.toml"
DEADLINE_S = 60.0
LONG = {"text_input": "Tell me a story.", "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    """``deployments/sim.toml``, at once ready, with short queues. Every request is taken apart."""
    plain = override(load_deployment(SIM), http_port=0, grpc_port=0, metrics_port=0)
    short = {"timing": {"start_s": 0.0}, "max_batch_size": 16, "max_queue": 24}
    workers = [msgspec.structs.replace(w, **short) for w in plain.worker]
    routing = msgspec.structs.replace(plain.routing, conditional_disaggregation=False)
    return msgspec.structs.replace(plain, worker=workers, routing=routing)


@pytest.fixture(scope="module")
def whole(deployment: Deployment) -> Iterator[TritonServer]:
    """A gateway with its workers."""
    with TritonServer(deployment) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(deployment: Deployment, whole: TritonServer) -> Iterator[TritonServer]:
    """A second gateway, whose workers are those of the first."""
    _, port = whole.grpc_url.rsplit(":", 1)
    workers = [msgspec.structs.replace(w, address=f"localhost:{port}") for w in deployment.worker]
    with TritonServer(msgspec.structs.replace(deployment, name="gateway", worker=workers)) as running:
        yield running


@pytest.fixture(params=["bls", "grpc"])
def server(request: pytest.FixtureRequest, whole: TritonServer, gateway: TritonServer) -> TritonServer:
    return whole if request.param == "bls" else gateway


def some_requests(codec: TextCodec, count: int, first_seed: int) -> list[dict[str, Any]]:
    rng = random.Random(first_seed)
    prompts = [[rng.randrange(codec.vocab_size) for _ in range(rng.randrange(2, 600))] for _ in range(count)]
    common = {"max_tokens": 20, "temperature": 1.0, "ignore_eos": True}
    return [{"input_ids": prompt, "seed": first_seed + i, **common} for i, prompt in enumerate(prompts)]


def check(asked: list[dict[str, Any]], answers: list[Answer], codec: TextCodec) -> None:
    assert [answer.error for answer in answers] == [None] * len(answers)
    for one, answer in zip(asked, answers, strict=True):
        assert answer.output_ids == expected_answer(one["seed"], one["input_ids"], 20, codec.vocab_size)


def test_two_orchestrators_share_their_workers(whole: TritonServer, gateway: TritonServer) -> None:
    codec = TextCodec(Path(whole.deployment.model.path))
    asked = [some_requests(codec, 100, first_seed=1000 * n) for n in range(2)]

    async def both() -> list[list[Answer]]:
        urls = whole.grpc_url, gateway.grpc_url
        return await asyncio.gather(*(ask_all(url, "llm", a, at_once=16) for url, a in zip(urls, asked, strict=True)))

    answers = asyncio.run(both())
    for one, got in zip(asked, answers, strict=True):
        check(one, got, codec)
    (where,) = {answer.facts["decode_worker"] for answer in answers[1]}
    assert where == f"decode_0@127.0.0.1:{whole.ports.grpc}"
    assert_nothing_left(whole)


def test_status_shows_workers_wherever_they_are(gateway: TritonServer, whole: TritonServer, tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_bytes(to_json(gateway.deployment))
    command = [str(Path(sys.executable).parent / "tandem"), "status", str(file), "--url", gateway.grpc_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ, check=True)
    rows = [line.split()[:3] for line in done.stdout.splitlines() if "@" in line]
    port = whole.ports.grpc
    assert rows == [[f"{stage}_0@127.0.0.1:{port}", stage, "sim"] for stage in ("prefill", "decode")]


def test_a_client_that_leaves_leaves_nothing_behind(server: TritonServer, whole: TritonServer) -> None:
    answer = ask_now(server.grpc_url, "llm", LONG, leave_after=3)
    assert answer.facts.get("left")
    assert_nothing_left(whole)


def test_what_is_more_than_a_worker_takes_waits_for_it(server: TritonServer) -> None:
    inputs = [LONG | {"text_input": f"{n}", "max_tokens": 30} for n in range(60)]  # a worker refuses the 41st
    answers = asyncio.run(ask_all(server.grpc_url, "llm", inputs, at_once=60))
    assert [(answer.error, len(answer.output_ids)) for answer in answers] == [(None, 30)] * 60


def await_decode(server: TritonServer) -> None:
    """Until decode_0 does what is its part."""
    end = time.monotonic() + DEADLINE_S
    worker = ""
    while not worker.startswith("decode_0") and time.monotonic() < end:
        worker = ask_now(server.grpc_url, "llm", {"input_ids": [1, 2], "max_tokens": 2}).facts["decode_worker"]
    assert worker.startswith("decode_0")


def test_requests_of_a_lost_engine_go_on_elsewhere_and_it_comes_back(server: TritonServer, whole: TritonServer) -> None:
    def kill(answer: Answer) -> None:
        if len(answer.output_ids) == 5:
            find_engine(whole, "decode_0").send_signal(signal.SIGKILL)

    await_decode(server)
    answer = ask_now(server.grpc_url, "llm", LONG | {"max_tokens": 150}, on_response=kill)
    assert answer.error is None
    assert len(answer.output_ids) == 150
    await_decode(server)


def test_a_server_that_is_stopped_finishes_what_others_have_there(whole: TritonServer, gateway: TritonServer) -> None:
    """The last test, since it ends the workers."""
    stopping, port = threading.Thread(target=whole.stop), whole.ports.grpc

    def stop(answer: Answer) -> None:
        if len(answer.output_ids) == 5:
            stopping.start()

    answer = ask_now(gateway.grpc_url, "llm", LONG | {"max_tokens": 150}, on_response=stop)
    assert answer.error is None
    assert len(answer.output_ids) == 150
    stopping.join(DEADLINE_S)
    assert not stopping.is_alive()
    assert f"worker decode_0@127.0.0.1:{port} drains: it gets nothing new" in gateway.log_file.read_text()
