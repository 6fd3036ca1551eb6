"""Simulated engines behind a real Triton: the whole path with handles and NIXL, and failures on demand."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.deployment import Deployment, Faults, Routing, load_deployment, override
from tandem.engines.sim.faults import is_struck
from tandem.engines.sim.tokens import expected_answer
from tandem.logs import Logging
from tandem.text.codec import TextCodec
from tandem.tracing.settings import Tracing
from tandem.triton.server import TritonServer
from tests.integration.clients import ask_all, ask_now, generate, post
from tests.integration.test_cancellation import assert_nothing_left
from tests.unit.build.test_watch import DASHBOARD, RULES, names_in
from tests.unit.tracing.spans import Found, read_spans

SIM = Path(__file__).parents[2] / "deployments" / "sim.toml"
FAILING = 0.2
IN_FLIGHT = 40
"""More than other tests here have at once."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """``deployments/sim.toml``, at once ready, with requests that fail in decode's pull; fully watched."""
    plain = override(load_deployment(SIM), http_port=0, grpc_port=0, metrics_port=0)
    prefill, decode = (msgspec.structs.replace(w, timing={"start_s": 0.0}) for w in plain.worker)
    decode = msgspec.structs.replace(decode, faults=Faults(pull_share=FAILING))
    limits = msgspec.structs.replace(plain.limits, max_requests=IN_FLIGHT, max_queue_s=2.0)
    return msgspec.structs.replace(
        plain,
        worker=[prefill, decode],
        limits=limits,
        routing=Routing(conditional_disaggregation=False),
        tracing=Tracing(directory=str(tmp_path_factory.mktemp("traces"))),
        logging=Logging(format="json", requests=True),
    )


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[TritonServer]:
    with TritonServer(deployment) as running:
        yield running


def test_answers_are_those_that_were_promised_whatever_fails_on_the_way(
    server: TritonServer, deployment: Deployment
) -> None:
    """Two hundred requests through both stages, each checked token by token; a fifth is moved."""
    codec = TextCodec(Path(deployment.model.path))
    rng = random.Random(0)
    prompts = [[rng.randrange(codec.vocab_size) for _ in range(rng.randrange(2, 600))] for _ in range(200)]
    asked = [
        {"input_ids": prompt, "max_tokens": 20, "seed": i, "temperature": 1.0, "ignore_eos": True}
        for i, prompt in enumerate(prompts)
    ]
    answers = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=32))
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert answer.error is None
        assert answer.output_ids == expected_answer(i, prompt, 20, codec.vocab_size)
        assert answer.facts["finish_reason"] == "length"
        assert answer.facts["num_input_tokens"] == len(prompt)
    assert_nothing_left(server)
    assert 0.1 * len(answers) < count_migrations(server) < 0.35 * len(answers)


def count_migrations(server: TritonServer) -> float:
    """After hand-overs that failed; Triton shows metrics with a second's delay."""
    time.sleep(2.0)
    page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    lines = [line for line in page.splitlines() if line.startswith("tandem_migrations_total{")]
    counts = {line: float(line.split()[-1]) for line in lines}
    assert all('reason="transfer_failed"' in line for line, count in counts.items() if count)
    return sum(counts.values())


def test_a_request_is_one_trace_through_all_parts(server: TritonServer, deployment: Deployment) -> None:
    """The caller's, which a header names over gRPC and a field over HTTP. Each part's end is a line in the log, too."""
    asked = {"text_input": "The capital of France is", "max_tokens": 4}

    def stream(caller: str) -> dict[str, Any]:
        return ask_now(server.grpc_url, "llm", asked, headers={"traceparent": caller}).facts

    def post(caller: str) -> dict[str, Any]:
        return generate(server.http_url, "ensemble", asked | {"traceparent": caller})

    for trace_id in (trace_of_one_that_moved(stream, "a"), trace_of_one_that_moved(post, "b")):
        spans = await_trace(Path(deployment.tracing.directory or ""), trace_id)
        (request,) = (span for span in spans if span.name == "request")
        assert request.parent_id == "b7ad6b7169203331"
        ids = {span.span_id for span in spans}
        assert all(span.parent_id in ids for span in spans if span is not request)
        assert {(span.process, span.name) for span in spans} >= {
            ("llm", "prefill"), ("llm", "transfer"), ("llm", "decode"),
            ("prefill_0", "prefill"), ("prefill_0", "queue"), ("prefill_0", "compute"),
            ("decode_0", "decode"), ("decode_0", "queue"), ("decode_0", "transfer"), ("decode_0", "tokens"),
        }  # fmt: skip
        lines = [line for line in server.log_file.read_text().splitlines() if f'"trace_id": "{trace_id}"' in line]
        ended = [json.loads(line) for line in lines if '"outcome"' in line]
        assert {entry["worker"] for entry in ended} == {"llm", "prefill_0", "decode_0"}


def trace_of_one_that_moved(ask: Callable[[str], dict[str, Any]], digit: str) -> str:
    """The id of the first request whose pull no fault strikes."""
    for number in range(20):
        trace_id = f"{digit * 30}{number:02x}"
        facts = ask(f"00-{trace_id}-b7ad6b7169203331-01")
        assert facts["trace_id"] == trace_id
        if facts["kv_bytes"]:
            return trace_id
    raise AssertionError("no request has moved its KV")


def await_trace(directory: Path, trace_id: str) -> list[Found]:
    """All spans of a trace; they are sent out a second later, by each process on its own."""
    deadline = time.monotonic() + 20
    while True:
        spans = read_spans(directory, trace_id)
        if {span.name for span in spans} >= {"request", "compute", "tokens"} or time.monotonic() > deadline:
            return spans
        time.sleep(0.1)


def test_all_that_dashboard_and_rules_ask_for_is_there(server: TritonServer) -> None:
    page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    wanted = names_in(DASHBOARD.read_text() + RULES.read_text())
    lines = [line for line in page.splitlines() if line.startswith("tandem_")]
    assert wanted <= {line.partition("{")[0] for line in lines}
    assert all('deployment="sim"' in line for line in lines)


def test_a_client_that_leaves_leaves_nothing_behind(server: TritonServer) -> None:
    for _ in range(3):
        answer = ask_now(
            server.grpc_url,
            "llm",
            {"text_input": "Tell me a story.", "max_tokens": 4000, "ignore_eos": True, "stream": True},
            leave_after=3,
        )
        assert answer.facts.get("left") or answer.error is not None
    assert_nothing_left(server)


def test_what_is_too_much_is_refused_and_tenants_share_what_is_not(
    server: TritonServer, deployment: Deployment
) -> None:
    """A tenant asks for nine times as much as can be done within the longest wait; one that comes last, for little."""
    codec, heavy, light = TextCodec(Path(deployment.model.path)), 360, 20
    asked = [
        {"input_ids": [i + 1, 7], "max_tokens": 60, "seed": i, "temperature": 1.0, "ignore_eos": True, "tenant": tenant}
        for i, tenant in enumerate(["heavy"] * heavy + ["light"] * light)
    ]
    answers = asyncio.run(ask_all(server.grpc_url, "llm", asked, at_once=len(asked)))
    for i, answer in enumerate(answers):
        if answer.error is None:
            assert answer.output_ids == expected_answer(i, [i + 1, 7], 60, codec.vocab_size)
        else:
            assert "[overloaded] " in answer.error
            assert "try again in " in answer.error
    served = [sum(answer.error is None for answer in part) for part in (answers[:heavy], answers[heavy:])]
    assert IN_FLIGHT <= sum(served) < len(asked)
    if sum(served) >= IN_FLIGHT + 2 * light:  # of those that had to wait it got every other place
        assert served[1] == light
    assert_nothing_left(server)
    assert ask_now(server.grpc_url, "llm", asked[0]).error is None


def test_a_request_that_cannot_be_in_time_is_refused_before_any_work(server: TritonServer) -> None:
    status, text = post(
        f"{server.http_url}/v2/models/llm/generate", {"input_ids": [5] * 100_000, "max_tokens": 2, "timeout_s": 1.5}
    )
    assert status == 400  # whatever the code, says Triton 2.51
    assert "[deadline_exceeded] timeout_s: 1." in text
    assert "are left, but a wait of 0.00 s and " in text
    assert ask_now(server.grpc_url, "llm", {"input_ids": [5], "max_tokens": 2, "priority": 10}).error is not None


def test_whom_a_fault_strikes_is_settled_by_its_id() -> None:
    struck = [is_struck(f"{i}", "pull", FAILING) for i in range(2000)]
    assert struck == [is_struck(f"{i}", "pull", FAILING) for i in range(2000)]
    assert 0.15 < sum(struck) / len(struck) < 0.25
