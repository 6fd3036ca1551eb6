"""Engines that die or freeze, clients that do not read: everybody gets a whole answer, and nothing stays."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import tritonclient.grpc.aio as grpc_aio

from tandem.cli.client import Client
from tandem.deployment import Deployment, Kv
from tandem.errors import TandemError
from tandem.messages import Hello, HelloReply
from tandem.text.codec import TextCodec
from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask, ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left

ENDED_S = 150.0
"""By then every request must have its answer, the engine that is left doing the work of both."""
BACK_S = 200.0
"""Only a worker that does not come back takes this long."""
SHORT = {"text_input": "The capital of France is", "max_tokens": 8, "ignore_eos": True}
LONG = {"text_input": "Tell me a very long story.", "max_tokens": 2000, "ignore_eos": True, "stream": True}
STORY = LONG | {"max_tokens": 100}


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[TritonServer]:
    """A server of this file's own, with short leases."""
    kv = Kv(lease_s=3.0, transfer_timeout_s=3.0)
    limits = msgspec.structs.replace(deployment.limits, max_queue_s=ENDED_S)  # however slow the machine
    with TritonServer(msgspec.structs.replace(deployment, name="faults", kv=kv, limits=limits)) as running:
        yield running


def find_engine(server: TritonServer, worker: str) -> psutil.Process:
    """The engine process of a worker."""
    run_id = (server.run_directory / "run_id").read_text()
    wanted = f"--worker {worker} "
    (engine,) = [p for p in find_processes(run_id) if wanted in " ".join(p.cmdline())]
    return engine


def epoch_of(server: TritonServer, worker: str) -> int | None:
    """The running engine's epoch; None while there is none."""
    with Client(server.grpc_url) as client:
        try:
            reply = client.call(worker, Hello())
        except TandemError:
            return None
    return reply.worker.epoch if isinstance(reply, HelloReply) else None


def assert_new_epoch(server: TritonServer, worker: str, old: int | None) -> None:
    end = time.monotonic() + BACK_S
    while epoch_of(server, worker) in (None, old) and time.monotonic() < end:
        time.sleep(0.2)
    assert epoch_of(server, worker) not in (None, old)


def assert_answers_again(server: TritonServer) -> None:
    """The stage that is left answers alone; once the other one is back and they have met, they share the work."""
    end = time.monotonic() + BACK_S
    workers = None
    while workers != ("prefill_0", "decode_0") and time.monotonic() < end:
        answer = ask_now(server.grpc_url, "llm", SHORT)
        assert answer.error is None
        assert len(answer.output_ids) == 8
        workers = answer.facts["prefill_worker"], answer.facts["decode_worker"]
    assert workers == ("prefill_0", "decode_0")


def assert_whole(answers: list[Answer], asked: dict[str, Any]) -> None:
    """Every answer has all of its tokens, and usage counts the prompt once."""
    for answer in answers:
        assert answer.error is None
        assert len(answer.output_ids) == asked["max_tokens"]
        assert answer.facts["num_output_tokens"] == asked["max_tokens"]
    assert len({answer.facts["num_input_tokens"] for answer in answers}) == 1


async def streams_until(
    server: TritonServer, inputs: list[dict[str, Any]], ready: Callable[[int], bool], strike: Callable[[], None]
) -> list[Answer]:
    """Run all streams; ``strike`` once ``ready`` holds for the number of streams that have begun to answer."""
    begun: set[int] = set()
    now = asyncio.Event()

    def note(number: int) -> Callable[[Answer], None]:
        def on_response(_: Answer) -> None:
            begun.add(number)
            if ready(len(begun)):
                now.set()

        return on_response

    async with grpc_aio.InferenceServerClient(server.grpc_url) as client:
        asks: list[Awaitable[Answer]] = [
            asyncio.ensure_future(ask(client, "llm", item, on_response=note(n))) for n, item in enumerate(inputs)
        ]
        await asyncio.wait_for(now.wait(), BACK_S)
        strike()
        return await asyncio.wait_for(asyncio.gather(*asks), ENDED_S)


def test_a_killed_decode_engine(server: TritonServer) -> None:
    old, engine = epoch_of(server, "decode_0"), find_engine(server, "decode_0")
    answers = asyncio.run(streams_until(server, [STORY] * 8, lambda begun: begun == 8, engine.kill))
    assert_whole(answers, STORY)
    assert_answers_again(server)
    assert_new_epoch(server, "decode_0", old)
    assert_nothing_left(server)


def test_a_killed_prefill_engine(server: TritonServer) -> None:
    old, engine = epoch_of(server, "prefill_0"), find_engine(server, "prefill_0")
    inputs = [
        {"text_input": f"{n} " + "word " * 700, "max_tokens": 8, "ignore_eos": True, "stream": True} for n in range(8)
    ]
    answers = asyncio.run(streams_until(server, inputs, lambda begun: begun >= 1, engine.kill))
    assert_whole(answers, inputs[0])
    assert_answers_again(server)
    assert_new_epoch(server, "prefill_0", old)
    assert_nothing_left(server)


def test_a_frozen_decode_engine_is_noticed_and_replaced(server: TritonServer) -> None:
    old, engine = epoch_of(server, "decode_0"), find_engine(server, "decode_0")
    answers = asyncio.run(streams_until(server, [STORY] * 4, lambda begun: begun == 4, engine.suspend))
    assert_whole(answers, STORY)
    assert_new_epoch(server, "decode_0", old)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert_answers_again(server)
    assert_nothing_left(server)


def test_a_handle_does_not_outlive_the_engine_that_gave_it(server: TritonServer) -> None:
    prompt = TextCodec(Path(server.deployment.model.path)).encode("The quick brown fox jumps over the lazy dog.")
    first = ask_now(server.grpc_url, "prefill_0", {"input_ids": prompt, "max_tokens": 8})
    assert first.error is None
    old = epoch_of(server, "prefill_0")
    find_engine(server, "prefill_0").send_signal(signal.SIGKILL)
    assert_new_epoch(server, "prefill_0", old)
    assert_answers_again(server)  # the workers have met
    redeemed = {"input_ids": prompt, "output_ids": first.output_ids, "kv_handle": first.facts["kv_handle"]}
    answer = ask_now(server.grpc_url, "decode_0", redeemed | {"max_tokens": 8})
    assert answer.error is not None
    assert "[handle_stale_epoch]" in answer.error
    assert_nothing_left(server)


def test_a_client_that_does_not_read_holds_nobody_up(server: TritonServer) -> None:
    stuck, go_on, slow = threading.Event(), threading.Event(), list[Answer]()

    def wait(_: Answer) -> None:
        stuck.set()
        assert go_on.wait(BACK_S)

    def read_slowly() -> None:
        slow.append(ask_now(server.grpc_url, "llm", LONG | {"max_tokens": 300}, on_response=wait))

    thread = threading.Thread(target=read_slowly)
    thread.start()
    try:
        assert stuck.wait(BACK_S)
        others = asyncio.run(ask_all(server.grpc_url, "llm", [SHORT] * 12, at_once=4))
        assert [(answer.error, len(answer.output_ids)) for answer in others] == [(None, 8)] * 12
        assert_nothing_left(server, within_s=ENDED_S)  # the engine does not wait for the client either
    finally:
        go_on.set()
        thread.join(BACK_S)
    assert slow[0].error is None
    assert len(slow[0].output_ids) == 300
