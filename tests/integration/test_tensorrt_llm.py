"""TensorRT-LLM's stand-in behind a real Triton, prefill and decode as two engines: the whole way of a request, and what
becomes of it where a step of it fails."""

from __future__ import annotations

import asyncio
import importlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Deployment, load_deployment, to_json
from tandem.errors import TandemError
from tandem.stage.keeper import EngineKeeper
from tandem.text.codec import TextCodec
from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer
from tests import fakes
from tests.integration.clients import Answer, ask_all, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import BACK_S, assert_new_epoch, epoch_of, find_engine, streams_until

ROOT = Path(__file__).parents[2]
FAULTS = "context:1,transfer_refused:1,transfer_lost:2,transfer_stuck:1,generation:1"
"""Each strikes the first request that comes to its step; a lost transfer's deadline passes unheard once."""
ADAPTER = 7
DEPLOYMENT = """
name = "trtllm"
model = {{ path = "{model}", max_model_len = 4096 }}
kv = {{ lease_s = 2.0, transfer_timeout_s = 1.0 }}
routing = {{ conditional_disaggregation = false }}
server = {{ http_port = 0, grpc_port = 0, metrics_port = 0 }}
limits = {{ max_migrations = 0 }}

[[worker]]
name = "prefill_0"
stage = "prefill"
engine = "tensorrt_llm"
devices = ["cuda:0"]
tensorrt_llm = {{ guided_decoding = "xgrammar", lora = [{{ task_id = 7, path = "adapter" }}] }}

[[worker]]
name = "decode_0"
stage = "decode"
engine = "tensorrt_llm"
devices = ["cuda:1"]
max_batch_size = 64
tensorrt_llm = {{ guided_decoding = "xgrammar", lora = [{{ task_id = 7, path = "adapter" }}] }}
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    directory = tmp_path_factory.mktemp("trtllm")
    (directory / "adapter").mkdir()
    (directory / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    file = directory / "trtllm.toml"
    file.write_text(DEPLOYMENT.format(model=ROOT / ".tandem" / "models" / "smollm2-135m-instruct"))
    return load_deployment(file)


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[TritonServer]:
    with pytest.MonkeyPatch.context() as patch:
        fakes.use(patch)
        patch.setenv("FAKE_TRTLLM_FAULTS", FAULTS)
        patch.setenv("FAKE_TRTLLM_KV_BLOCKS", "4096")
        with TritonServer(deployment) as running:
            yield running
            run_id = (running.run_directory / "run_id").read_text()
    assert find_processes(run_id) == []


@pytest.fixture(scope="module")
def vocab_size(deployment: Deployment) -> int:
    return TextCodec(Path(deployment.model.path)).vocab_size


@pytest.fixture(scope="module")
def tokens(server: TritonServer) -> Any:
    """What the stand-in answers, as it says itself."""
    assert server  # with it the stand-in came onto the path
    return importlib.import_module("tensorrt_llm._tokens")


def ask_llm(server: TritonServer, prompt: list[int], **inputs: Any) -> Answer:
    asked = {"input_ids": prompt, "max_tokens": 8, "ignore_eos": True, "stream": True} | inputs
    return ask_now(server.grpc_url, "llm", asked)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("context", ["[engine_failed]", "CUDA out of memory", "'prefill_0@", "in prefill on prefill_0"]),
        ("transfer refused", ["[transfer_failed]", "Error in kv cache transfer", "in decode on decode_0"]),
        (
            "transfer lost, unheard",
            ["[transfer_failed]", "decode has not got the KV after 3 s", "in decode on decode_0"],
        ),
        ("transfer lost", ["[transfer_failed]", "timed out", "in decode on decode_0"]),
        ("generation", ["[engine_failed]", "an illegal memory access", "'decode_0@", "in decode on decode_0"]),
    ],
)
def test_a_step_that_fails_says_what_happened(server: TritonServer, step: str, words: list[str]) -> None:
    """In this order, since each fault strikes the first one that comes so far."""
    answer = ask_llm(server, [len(step), 2, 3])
    assert answer.error is not None, step
    assert [w for w in words if w not in answer.error] == [], answer.error
    assert_nothing_left(server)


def test_answers_are_the_models_taken_apart_or_not(server: TritonServer, vocab_size: int, tokens: Any) -> None:
    """A hundred requests through both stages, token by token; some sample, some ask for log-probabilities."""
    rng = random.Random(0)
    prompts = [[rng.randrange(vocab_size) for _ in range(rng.randrange(1, 600))] for _ in range(100)]
    asked: list[dict[str, Any]] = [
        {"input_ids": prompt, "max_tokens": 1 + i % 20, "ignore_eos": True, "stream": i % 2 == 0}
        | ({"seed": i, "temperature": 1.0} if i % 3 == 0 else {})
        | ({"top_logprobs": 2} if i % 5 == 0 else {})
        for i, prompt in enumerate(prompts)
    ]
    answers = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=32))
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert answer.error is None
        assert answer.output_ids == tokens.expected_answer(prompt, 1 + i % 20, vocab_size, i if i % 3 == 0 else 0)
        assert len(answer.facts.get("output_log_probs", [])) == (1 + i % 20 if i % 5 == 0 else 0)
        assert answer.facts["prefill_worker"] == "prefill_0"
        # 1.2 cannot go on from handed-over KV where log-probabilities are asked for
        assert (answer.facts["kv_bytes"] > 0) == (i % 20 > 0 and i % 5 > 0)
    assert_nothing_left(server)


def test_what_is_cached_is_known_to_the_router(server: TritonServer, vocab_size: int) -> None:
    prompt = [i * 37 % vocab_size for i in range(400)]
    first, second = (ask_llm(server, prompt) for _ in range(2))
    assert (first.facts["num_cached_tokens"], second.facts["num_cached_tokens"]) == (0, 384)
    assert "384" in second.facts["route"] or "cached" in second.facts["route"]


def test_adapters_and_guides_change_what_is_said(server: TritonServer, vocab_size: int, tokens: Any) -> None:
    prompt, schema = [5, 6, 7], '{"type": "object"}'
    bare = ask_llm(server, prompt)
    adapted = ask_llm(server, prompt, lora_task_id=ADAPTER)
    guided = ask_llm(server, prompt, guided_decoding_guide_type="json_schema", guided_decoding_guide=schema)
    assert bare.output_ids == tokens.expected_answer(prompt, 8, vocab_size)
    assert adapted.output_ids == tokens.expected_answer(prompt, 8, vocab_size, flavour=tokens.make_flavour(ADAPTER))
    assert guided.output_ids == tokens.expected_answer(prompt, 8, vocab_size, flavour=tokens.make_flavour(None, schema))
    unknown = ask_llm(server, prompt, lora_task_id=8)
    assert "lora_task_id: 8 is no adapter of this worker; it has 7" in (unknown.error or "")


def test_a_client_that_leaves_leaves_nothing_behind(server: TritonServer) -> None:
    asked = {"input_ids": [9] * 50, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    for leave_after in (1, 3):
        assert ask_now(server.grpc_url, "llm", asked, leave_after=leave_after).facts.get("left")
    assert_nothing_left(server)


def test_an_engine_that_dies_in_an_answer_is_told_of_and_comes_back(server: TritonServer) -> None:
    old, engine = epoch_of(server, "decode_0"), find_engine(server, "decode_0")
    asked = {"input_ids": [11] * 50, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    answers = asyncio.run(streams_until(server, [asked] * 4, lambda begun: begun == 4, engine.kill))
    assert all("[worker_lost]" in (a.error or "") and "decode_0" in (a.error or "") for a in answers)
    assert_new_epoch(server, "decode_0", old)
    await_both(server)
    assert_nothing_left(server)


def await_both(server: TritonServer) -> None:
    """Until both workers share a request. The new engine is armed as the old one was, so the first ones fail."""
    end = time.monotonic() + BACK_S
    workers = None
    while workers != ("prefill_0", "decode_0") and time.monotonic() < end:
        answer = ask_llm(server, [1, 2, 3])
        workers = (answer.facts["prefill_worker"], answer.facts["decode_worker"]) if answer.error is None else None
    assert workers == ("prefill_0", "decode_0")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PYTHONPATH": ""}, "worker.engine: 'tensorrt_llm' cannot be imported"),
        ({"FAKE_TRTLLM_FAULTS": "construct:1"}, "TensorRT-LLM 1.2.1 cannot be built: RuntimeError: Executor worker"),
    ],
)
def test_an_engine_that_cannot_be_built_says_why(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    fakes.use(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "deployment.json"
    file.write_bytes(to_json(deployment))
    keeper = EngineKeeper(file, "prefill_0", tmp_path / "engine.log", lambda _events: None, lambda _reason: None)
    with pytest.raises(TandemError, match=words):
        keeper.start()
