"""The gate before real workers: who waits for prefill workers, and who passes those."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import tritonclient.grpc.aio as grpc_aio

from tandem.deployment import Deployment, load_deployment, override
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask
from tests.integration.test_cancellation import assert_nothing_left

SIM = Path(__file__).parents[2] / "deployments" / "sim.toml"
LONG, SHORT = 1500, 20
"""Tokens of prompts; they are read at a thousand a second."""
RUNNING, WAITING = 12, 5


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """``deployments/sim.toml`` with workers that read slowly and write fast."""
    plain: Deployment = override(load_deployment(SIM), http_port=0, grpc_port=0, metrics_port=0)
    workers = [msgspec.structs.replace(worker, timing={"start_s": 0.0, "token_s": 1e-3}) for worker in plain.worker]
    with TritonServer(msgspec.structs.replace(plain, worker=workers)) as running:
        yield running


def test_a_short_prompt_does_not_wait_behind_long_ones_where_a_decode_worker_can_read_it(server: TritonServer) -> None:
    """Five long prompts come at once, which nobody reads but prefill: twelve answers would stand still."""
    running, long, short, begun = asyncio.run(ask_in_turn(server.grpc_url))
    assert all(answer.error is None for answer in (*running, *long, short))
    assert {answer.facts["prefill_worker"] for answer in long} == {"prefill_0"}
    assert (short.facts["prefill_worker"], short.facts["decode_worker"]) == ("decode_0", "decode_0")
    assert "; whole: " in short.facts["route"]
    assert begun.index(SHORT) < 3  # in its turn it would be fifth
    assert_nothing_left(server)


async def ask_in_turn(url: str) -> tuple[list[Answer], list[Answer], Answer, list[int]]:
    """Answers that run, then long prompts, then a short one. Returns them all, and the prompts' lengths in the order in
    which their answers began."""
    begun: list[int] = []
    async with grpc_aio.InferenceServerClient(url) as client:

        def start(number: int, prompt_tokens: int, max_tokens: int) -> asyncio.Task[Answer]:
            def on_response(answer: Answer) -> None:
                if number not in seen and answer.output_ids:
                    seen.add(number)
                    begun.append(prompt_tokens)

            seen: set[int] = set()
            asked = {
                "input_ids": [number + 1] * prompt_tokens,
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "stream": True,
            }
            return asyncio.create_task(ask(client, "llm", asked, on_response=on_response))

        running = [start(number, 2, 1000) for number in range(RUNNING)]
        while len(begun) < RUNNING:
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in running)
        begun.clear()
        long = [start(100 + number, LONG, 2) for number in range(WAITING)]
        await asyncio.sleep(0.3)  # more than they take to come to the gate, less than one takes to be read
        short = start(200, SHORT, 2)
        return await asyncio.gather(*running), await asyncio.gather(*long), await short, begun
