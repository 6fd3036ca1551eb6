"""Engines are killed and stopped in turn under running streams: every answer is the undisturbed one, token by token."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import pytest
import tritonclient.grpc.aio as grpc_aio

from tandem.deployment import Deployment, Health, Kv, Worker
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask, ask_all
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import BACK_S, epoch_of, find_engine

STREAMS = 64
TOKENS = 16
WORKERS = ["prefill_0", "prefill_1", "decode_0", "decode_1"]
CLOSE = {10, 18, 19, 22, 27, 31, 34, 36, 39, 47, 54, 71, 74, 75}
"""Numbers of requests that are left out: a choice in their answers changes with noise of 0.001 on the logits, so the
rounding of another batch might make another one."""
WAVE_S = 120.0
STOPPED_S = 8.0
"""Longer than it takes to notice, and too short for the engine to be replaced."""


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[TritonServer]:
    """Two workers of each stage, in fp32: there a request gives the same tokens in any company."""
    model = msgspec.structs.replace(deployment.model, dtype="float32", max_model_len=512)
    workers = [
        Worker(name=name, stage="prefill" if "prefill" in name else "decode", threads=1, kv_memory="128MiB")
        for name in WORKERS
    ]
    changes: dict[str, Any] = {"health": Health(silence_s=3.0, back_off_s=0.5), "kv": Kv(transfer_timeout_s=5.0)}
    with TritonServer(
        msgspec.structs.replace(deployment, name="recovery", model=model, worker=workers, **changes)
    ) as running:
        yield running


def make_request(number: int) -> dict[str, Any]:
    """Greedy, with penalties, sampled, or all of it with log-probabilities."""
    kinds: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.4},
        {"temperature": 0.9, "seed": number, "top_p": 0.95},
        {"temperature": 0.8, "seed": number, "presence_penalty": 0.6, "min_tokens": 15, "return_log_probs": True},
    ]
    text = f"Item {number} of a list of things to see in the city of Paris:"
    return {"text_input": text, "max_tokens": TOKENS, "stream": True} | kinds[number % 4]


@dataclass
class Strike:
    """A signal to a worker's engine, as soon as so many tokens have come in all."""

    after: int
    worker: str
    signal: signal.Signals


WAVES = [
    [Strike(20, "prefill_0", signal.SIGKILL), Strike(400, "decode_0", signal.SIGSTOP)],
    [Strike(20, "prefill_1", signal.SIGSTOP), Strike(400, "decode_1", signal.SIGKILL)],
    [Strike(300, "decode_0", signal.SIGKILL), Strike(301, "prefill_0", signal.SIGSTOP)],
    [Strike(20, "prefill_1", signal.SIGKILL), Strike(300, "decode_1", signal.SIGSTOP)],
]


async def run_wave(server: TritonServer, requests: list[dict[str, Any]], strikes: list[Strike]) -> list[Answer]:
    """All requests at once, struck on their way."""
    engines = [find_engine(server, strike.worker) for strike in strikes]
    seen = [0] * len(requests)
    left = list(zip(strikes, engines, strict=True))

    def note(number: int) -> Callable[[Answer], None]:
        def on_response(answer: Answer) -> None:
            seen[number] = len(answer.output_ids)
            while left and sum(seen) >= left[0][0].after:
                strike, engine = left.pop(0)
                engine.send_signal(strike.signal)
                if strike.signal == signal.SIGSTOP:
                    asyncio.get_running_loop().call_later(STOPPED_S, resume, engine)

        return on_response

    try:
        async with grpc_aio.InferenceServerClient(server.grpc_url) as client:
            asks = [ask(client, "llm", request, on_response=note(n)) for n, request in enumerate(requests)]
            answers = await asyncio.wait_for(asyncio.gather(*asks), WAVE_S)
    finally:
        for engine in engines:
            resume(engine)
    assert not left
    return list(answers)


def resume(engine: psutil.Process) -> None:
    """Let a stopped process go on, if it is still there."""
    if engine.is_running():
        os.kill(engine.pid, signal.SIGCONT)


def await_all(server: TritonServer) -> None:
    end = time.monotonic() + BACK_S
    while not all(epoch_of(server, worker) for worker in WORKERS) and time.monotonic() < end:
        time.sleep(0.2)


def told(answer: Answer) -> dict[str, Any]:
    """What must be the same whatever is lost."""
    usage = {name: answer.facts.get(name) for name in ("finish_reason", "num_input_tokens", "num_output_tokens")}
    return {"error": answer.error, "ids": answer.output_ids, "text": answer.text} | usage


def test_answers_under_losses_are_the_undisturbed_ones(server: TritonServer) -> None:
    requests = [make_request(n) for n in range(STREAMS + len(CLOSE)) if n not in CLOSE]
    undisturbed = asyncio.run(ask_all(server.grpc_url, "llm", requests, at_once=STREAMS))
    assert {answer.error for answer in undisturbed} == {None}
    for strikes in WAVES:
        answers = asyncio.run(run_wave(server, requests, strikes))
        for request, answer, expected in zip(requests, answers, undisturbed, strict=True):
            assert told(answer) == told(expected), (request, strikes)
            assert answer.facts.get("output_log_probs") == pytest.approx(
                expected.facts.get("output_log_probs"), abs=1e-3
            )
        await_all(server)
        assert_nothing_left(server, within_s=60.0)


def test_all_workers_are_used_again(server: TritonServer) -> None:
    """Those that were killed, and those that were stopped and have gone on. The prompts are cached nowhere."""
    used: set[str] = set()
    end = time.monotonic() + BACK_S
    numbers = itertools.count()
    while used != set(WORKERS) and time.monotonic() < end:
        requests = [{"text_input": f"{next(numbers)} and so on, " * 8, "max_tokens": 2} for _ in range(16)]
        for answer in asyncio.run(ask_all(server.grpc_url, "llm", requests, at_once=16)):
            assert answer.error is None
            used |= {answer.facts["prefill_worker"], answer.facts["decode_worker"]}
    assert used == set(WORKERS)
    assert_nothing_left(server)
