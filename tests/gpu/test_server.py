"""The demo model, or the one at TANDEM_TEST_MODEL, served by TensorRT-LLM behind a real Triton."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.deployment import load_deployment
from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer
from tests.gpu.conftest import GPUS
from tests.integration.clients import ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import assert_answers_again, assert_new_epoch, epoch_of, find_engine, streams_until

ROOT = Path(__file__).parents[2]
MODEL = os.environ.get("TANDEM_TEST_MODEL", str(ROOT / ".tandem" / "models" / "smollm2-135m-instruct"))
DEPLOYMENT = f"""
name = "gpu"
model = {{ path = "{MODEL}", max_model_len = 2048 }}
kv = {{ block_size = 32, lease_s = 5.0, transfer_timeout_s = 5.0 }}
routing = {{ conditional_disaggregation = false }}
server = {{ http_port = 0, grpc_port = 0, metrics_port = 0 }}

[[worker]]
name = "prefill_0"
stage = "prefill"
engine = "tensorrt_llm"
devices = ["cuda:{GPUS[0]}"]

[[worker]]
name = "decode_0"
stage = "decode"
engine = "tensorrt_llm"
devices = ["cuda:{GPUS[-1]}"]
"""
LONG = {"text_input": "Tell me a very long story.", "max_tokens": 1000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    file = tmp_path_factory.mktemp("gpu") / "gpu.toml"
    file.write_text(DEPLOYMENT)
    with TritonServer(load_deployment(file)) as running:
        yield running
        run_id = (running.run_directory / "run_id").read_text()
    assert find_processes(run_id) == []


def test_an_answer_has_sense_and_went_through_both_stages(server: TritonServer) -> None:
    question = '[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]'
    answer = ask_now(server.grpc_url, "llm", {"messages": question, "max_tokens": 40, "stream": True})
    assert answer.error is None
    assert "Paris" in answer.text
    assert (answer.facts["prefill_worker"], answer.facts["decode_worker"]) == ("prefill_0", "decode_0")
    assert answer.facts["kv_bytes"] > 0


def test_many_at_once_are_answered_as_one_by_one(server: TritonServer) -> None:
    """Close choices may fall the other way in another batch, so most and not all have to be alike."""
    asked = [{"text_input": f"The number after {n} is", "max_tokens": 16, "ignore_eos": True} for n in range(64)]
    together = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=32))
    alone = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=1))
    assert all(a.error is None and len(a.output_ids) == 16 for a in together + alone)
    assert sum(a.output_ids == b.output_ids for a, b in zip(together, alone, strict=True)) > 48
    assert_nothing_left(server)


def test_clients_that_leave_leave_nothing_behind(server: TritonServer) -> None:
    for leave_after in (1, 3, 20):
        assert ask_now(server.grpc_url, "llm", LONG, leave_after=leave_after).facts.get("left")
    assert_nothing_left(server)


def test_an_engine_that_dies_in_an_answer_is_told_of_and_comes_back(server: TritonServer) -> None:
    old, engine = epoch_of(server, "decode_0"), find_engine(server, "decode_0")
    answers = asyncio.run(streams_until(server, [LONG] * 4, lambda begun: begun == 4, engine.kill))
    assert all("[worker_lost]" in (a.error or "") and "decode_0" in (a.error or "") for a in answers)
    assert_new_epoch(server, "decode_0", old)
    assert_answers_again(server)
    assert_nothing_left(server)
