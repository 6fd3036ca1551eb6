"""A decode worker whose KV memory carries all prompts but not all answers, behind a real Triton."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from pathlib import Path

from tandem.deployment import Deployment, Kv, Limits, Model, Routing, Server, Worker
from tandem.triton.server import TritonServer
from tests.checkpoints import make_random_model
from tests.integration.clients import ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left

ANSWER = 150
BLOCKS = 100
"""Of 4 tokens; a prompt and its answer take 43."""
BLOCK_BYTES = 4 * 512


def make_deployment(directory: Path) -> Deployment:
    """With ``kv_share`` the gateway bets on answers much shorter than those that are asked for."""
    return Deployment(
        name="tight",
        model=Model(path=str(make_random_model("llama", directory)), dtype="float32"),
        server=Server(http_port=0, grpc_port=0, metrics_port=0),
        limits=Limits(kv_share=4.0),
        routing=Routing(conditional_disaggregation=False),
        worker=[
            Worker(name="prefill_0", stage="prefill", threads=1, kv_memory="4MiB"),
            Worker(name="decode_0", stage="decode", threads=1, kv_memory=f"{BLOCKS * BLOCK_BYTES // 1024}KiB"),
        ],
        kv=Kv(block_size=4),
    )


def count_preemptions(server: TritonServer) -> dict[str, float]:
    """By worker; Triton shows metrics with a second's delay."""
    time.sleep(2.0)
    page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    lines = [line for line in page.splitlines() if line.startswith("tandem_preemptions_total{")]
    return {line.partition('worker="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}


def test_who_gives_way_answers_as_if_alone(tmp_path: Path) -> None:
    """Greedy, sampled and with penalties; each token comes once, and is counted once."""
    rng = random.Random(5)
    sampling = [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 0.8, "seed": 8, "frequency_penalty": 0.5}]
    asked = [
        {"input_ids": [rng.randrange(3, 250) for _ in range(20)], "max_tokens": ANSWER, "ignore_eos": True}
        | {"stream": True}
        | sampling[i % 3]
        for i in range(8)
    ]
    with TritonServer(make_deployment(tmp_path)) as server:
        together = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=len(asked)))
        counts = count_preemptions(server)
        alone = [ask_now(server.grpc_url, "llm", one) for one in asked]
        assert [answer.error for answer in together] == [None] * len(asked)
        assert [answer.output_ids for answer in together] == [answer.output_ids for answer in alone]
        facts = {
            (a.facts["finish_reason"], a.facts["num_input_tokens"], a.facts["num_output_tokens"]) for a in together
        }
        assert facts == {("length", 20, ANSWER)}
        assert counts["decode_0"] > 0
        assert counts["prefill_0"] == 0
        assert count_preemptions(server) == counts  # alone nobody gives way
        assert_nothing_left(server)
