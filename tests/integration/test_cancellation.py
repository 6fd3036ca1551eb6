"""Whoever leaves, however they leave: nothing of their request stays behind."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time

import pytest
import tritonclient.grpc.aio as grpc_aio

from tandem.cli.client import Client
from tandem.messages import Hello, HelloReply, Load
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask, ask_all, ask_now, post

LONG = {"text_input": "Tell me a very long story.", "max_tokens": 2000, "ignore_eos": True, "stream": True}


def load_of(client: Client, worker: str) -> Load:
    """What a worker has in hand."""
    reply = client.call(worker, Hello())
    assert isinstance(reply, HelloReply)
    return reply.load


def in_use(server: TritonServer) -> dict[str, tuple[int, int, int, int]]:
    """Queued, running, blocks used and handles held of every worker."""
    with Client(server.grpc_url) as client:
        loads = {worker.name: load_of(client, worker.name) for worker in server.deployment.worker}
    return {name: (load.queued, load.running, load.blocks_used, load.handles_held) for name, load in loads.items()}


def assert_nothing_left(server: TritonServer, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while any(any(values) for values in in_use(server).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(values == (0, 0, 0, 0) for values in in_use(server).values())


@pytest.fixture(scope="module", autouse=True)
def _begin_with_nothing_held(server: TritonServer) -> None:
    """Handles that other tests did not redeem are held until their lease ends."""
    assert_nothing_left(server, within_s=server.deployment.kv.lease_s + 60.0)


def test_a_cancelled_grpc_stream_frees_everything(server: TritonServer) -> None:
    answer = ask_now(server.grpc_url, "llm", LONG, leave_after=3)
    assert answer.facts["left"]
    assert_nothing_left(server)


@pytest.mark.alone
def test_cancelling_takes_effect_within_two_steps(server: TritonServer) -> None:
    def decode_load() -> Load:
        with Client(server.grpc_url) as client:
            return load_of(client, "decode_0")

    ask_now(server.grpc_url, "llm", LONG, leave_after=5)
    left_at = decode_load().steps
    assert_nothing_left(server)
    assert decode_load().steps - left_at <= 2


def test_a_client_that_leaves_during_prefill_frees_everything(server: TritonServer) -> None:
    async def run() -> None:
        async with grpc_aio.InferenceServerClient(server.grpc_url) as client:
            prompt = {"text_input": "word " * 6000, "max_tokens": 8, "stream": True}
            task = asyncio.create_task(ask(client, "llm", prompt))
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert_nothing_left(server, within_s=60.0)


def test_a_dropped_http_stream_frees_everything(server: TritonServer) -> None:
    host, port = server.http_url.removeprefix("http://").split(":")
    body = b'{"text_input": "Tell me a very long story.", "max_tokens": 2000, "ignore_eos": true, "stream": true}'
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v2/models/llm/generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert b"200" in connection.recv(4096)
    assert_nothing_left(server)


@pytest.mark.parametrize("model", ["llm", "ensemble"])
def test_a_request_is_cancelled_by_id(server: TritonServer, model: str) -> None:
    started = threading.Event()
    answers: list[Answer] = []

    def run() -> None:
        answers.append(ask_now(server.grpc_url, model, LONG, request_id="to-stop", on_response=lambda _: started.set()))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(60)
    stop = ask_now(server.grpc_url, model, {"stop": True}, request_id="to-stop")
    thread.join(60)
    assert not thread.is_alive()
    assert stop.error is None
    assert answers[0].facts["finish_reason"] == "cancelled"
    assert 0 < answers[0].facts["num_output_tokens"] < 2000
    assert_nothing_left(server)


def test_stopping_an_unknown_request_says_so(server: TritonServer) -> None:
    status, text = post(f"{server.http_url}/v2/models/llm/generate", {"id": "nobody", "stop": True})
    assert status >= 400
    assert "no request with id 'nobody' is running" in text


def test_a_deadline_ends_a_request_and_says_where(server: TritonServer) -> None:
    answer = ask_now(server.grpc_url, "llm", LONG | {"timeout_s": 0.7})
    assert answer.error is not None
    assert "[deadline_exceeded] timeout_s: not done after 0.7 s; in " in answer.error
    assert_nothing_left(server)


def test_many_requests_some_of_which_leave(server: TritonServer) -> None:
    """Every request ends, with its answer or because its client left; nothing is left over."""
    draw = random.Random(5)
    total, at_once = 300, 64

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(at_once)
        async with grpc_aio.InferenceServerClient(server.grpc_url) as client:

            async def one(number: int) -> Answer:
                inputs = {"text_input": f"Count from {number}:", "max_tokens": 6, "stream": True, "ignore_eos": True}
                leaves = draw.random() < 0.1
                async with gate:
                    return await ask(client, "llm", inputs, leave_after=draw.randint(1, 5) if leaves else None)

            return await asyncio.gather(*(one(number) for number in range(total)))

    answers = asyncio.run(run())
    assert len(answers) == total
    for answer in answers:
        assert answer.error is None
        assert "left" in answer.facts or len(answer.output_ids) == 6
    assert_nothing_left(server)


def test_more_than_fits_waits_or_is_refused(server: TritonServer) -> None:
    """How much is refused depends on this machine; ``test_sim.py`` has workers whose speed is known."""
    inputs = [{"text_input": "Hi", "max_tokens": 16, "ignore_eos": True} for _ in range(200)]
    answers = asyncio.run(ask_all(server.grpc_url, "llm", inputs, at_once=len(inputs)))
    assert sum(answer.error is None for answer in answers) >= 32  # a full batch
    assert all("[overloaded]" in answer.error for answer in answers if answer.error)
    assert all(len(answer.output_ids) == 16 for answer in answers if not answer.error)
    assert_nothing_left(server)
