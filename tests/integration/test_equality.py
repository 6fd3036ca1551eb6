"""The whole stack in fp32 says what ``transformers`` says on the same weights, token for token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tandem.deployment import Deployment
from tandem.engines.torch.scheduler import Step
from tandem.kv.blocks import BlockPool
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer
from tests.integration.clients import ask_all, ask_now, generate
from tests.unit.engines.torch.support import make_runner, make_sequence, step_logits

pytestmark = pytest.mark.timeout(1800)  # the first test waits for 50 answers, one after the other

PROMPTS = 50
MOST_TOKENS = 1500
ANSWER_TOKENS = 8
TEXT = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def fp32_server(deployment: Deployment) -> Iterator[TritonServer]:
    model = msgspec.structs.replace(deployment.model, dtype="float32")
    with TritonServer(msgspec.structs.replace(deployment, name="fp32", model=model)) as server:
        yield server


@pytest.fixture(scope="module")
def prompts(deployment: Deployment) -> list[list[int]]:
    """Real text from 1 to 1,500 tokens, short ones more often than long ones."""
    ids = TextCodec(Path(deployment.model.path)).encode(TEXT.read_text())
    draw = random.Random(11)
    sizes = [round(MOST_TOKENS ** (n / (PROMPTS - 1))) for n in range(PROMPTS)]
    starts = [draw.randrange(len(ids) - size) for size in sizes]
    return [ids[start : start + size] for start, size in zip(starts, sizes, strict=True)]


@pytest.fixture(scope="module")
def model(deployment: Deployment) -> PreTrainedModel:
    torch.set_num_threads(1)  # other tests run beside it, and threads that wait for each other would spin meanwhile
    return AutoModelForCausalLM.from_pretrained(deployment.model.path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def requests(prompts: list[list[int]]) -> list[dict[str, Any]]:
    return [{"input_ids": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True} for prompt in prompts]


@pytest.fixture(scope="module")
def alone(fp32_server: TritonServer, requests: list[dict[str, Any]]) -> list[list[int]]:
    """The answers to all requests, each made alone."""
    return [ask_now(fp32_server.grpc_url, "llm", request | {"stream": True}).output_ids for request in requests]


def test_logits_are_those_of_transformers(
    deployment: Deployment, model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    runner = make_runner(Path(deployment.model.path), block_size=16, kv_memory="256MiB")
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, prompt, block_size=16) for prompt in prompts[::7]]
    ordered, logits = step_logits(runner, Step(True, sequences))
    with torch.inference_mode():
        for sequence, row in zip(ordered, logits, strict=True):
            theirs = model(torch.tensor([sequence.token_ids]), logits_to_keep=1).logits[0, -1]
            assert (row - theirs).abs().max() < 1e-3


def test_alone_over_grpc(model: PreTrainedModel, requests: list[dict[str, Any]], alone: list[list[int]]) -> None:
    """Greedy answers of ``transformers``: given the prompt and what was said so far, each token is its most likely."""
    assert [len(answer) for answer in alone] == [ANSWER_TOKENS] * PROMPTS
    with torch.inference_mode():
        for request, answer in zip(requests, alone, strict=True):
            said = torch.tensor([request["input_ids"] + answer[:-1]])
            assert model(said, logits_to_keep=ANSWER_TOKENS).logits[0].argmax(-1).tolist() == answer


def test_alone_over_http(fp32_server: TritonServer, requests: list[dict[str, Any]], alone: list[list[int]]) -> None:
    got = [generate(fp32_server.http_url, "llm", request)["output_ids"] for request in requests[::5]]
    assert got == alone[::5]


def test_sixteen_at_a_time_in_random_order(
    fp32_server: TritonServer, requests: list[dict[str, Any]], alone: list[list[int]]
) -> None:
    order = random.Random(3).sample(range(PROMPTS), PROMPTS)
    answers = asyncio.run(ask_all(fp32_server.grpc_url, "llm", [requests[n] for n in order], at_once=16))
    assert [answer.output_ids for answer in answers] == [alone[n] for n in order]


def test_one_process_doing_both_stages_agrees(
    fp32_server: TritonServer, requests: list[dict[str, Any]], alone: list[list[int]]
) -> None:
    answers = asyncio.run(ask_all(fp32_server.grpc_url, "decode_0", requests[::2], at_once=16))
    assert [answer.output_ids for answer in answers] == alone[::2]


def test_a_seed_gives_the_same_answer_in_any_company(fp32_server: TritonServer) -> None:
    request = {"text_input": "My favourite colour is", "max_tokens": 16, "temperature": 1.0, "seed": 7}
    others = [{"text_input": f"Number {n}:", "max_tokens": 16, "temperature": 1.0} for n in range(7)]
    alone = ask_now(fp32_server.grpc_url, "llm", request)
    in_company = asyncio.run(ask_all(fp32_server.grpc_url, "llm", [*others, request], at_once=8))[-1]
    other_seed = ask_now(fp32_server.grpc_url, "llm", request | {"seed": 8})
    assert alone.output_ids == in_company.output_ids
    assert alone.output_ids != other_seed.output_ids
