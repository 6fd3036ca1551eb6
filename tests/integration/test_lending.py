"""The next turn of a conversation: prefill borrows the KV of the answer from the worker that wrote it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.cli.client import Client
from tandem.deployment import Worker, load_deployment, override
from tandem.engines.sim.tokens import expected_answer
from tandem.messages import Hello, HelloReply, Load
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer
from tests.integration.clients import Answer, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import find_engine

SIM = Path(__file__).parents[2] / "deployments" / "sim.toml"
DEADLINE_S = 60.0
ANSWER = 200


def load_of(server: TritonServer, worker: str) -> Load:
    """What a worker has in hand; waits for one that starts again."""
    deadline = time.monotonic() + DEADLINE_S
    with Client(server.grpc_url) as client:
        while not isinstance(reply := client.call(worker, Hello()), HelloReply):
            assert time.monotonic() < deadline, reply
            time.sleep(0.2)
    return reply.load


def make_turn(codec: TextCodec, seed: int, tokens: int = 300) -> dict[str, Any]:
    rng = random.Random(seed)
    prompt = [rng.randrange(codec.vocab_size) for _ in range(tokens)]
    return {"input_ids": prompt, "seed": seed, "max_tokens": ANSWER, "ignore_eos": True}


def next_turn(codec: TextCodec, turn: dict[str, Any], answer: Answer) -> dict[str, Any]:
    more = make_turn(codec, turn["seed"] + 1, tokens=20)["input_ids"]
    return turn | {"input_ids": [*turn["input_ids"], *answer.output_ids, *more], "max_tokens": 16}


def until_known(server: TritonServer, worker: str) -> None:
    """Until a worker holds nothing for requests, and the orchestrator has heard what it keeps: polls take a second."""
    deadline = time.monotonic() + DEADLINE_S
    while load_of(server, worker).blocks_used:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.5)


def test_the_real_engine_reads_what_is_new_alone(server: TritonServer) -> None:
    codec = TextCodec(Path(server.deployment.model.path))
    turn = make_turn(codec, seed=7000)
    answer = ask_now(server.grpc_url, "llm", turn)
    until_known(server, "decode_0")
    before = load_of(server, "prefill_0").tokens_borrowed
    following = next_turn(codec, turn, answer)
    second = ask_now(server.grpc_url, "llm", following)
    assert (answer.error, second.error) == (None, None)
    size = server.deployment.kv.block_size
    known = (len(turn["input_ids"]) + ANSWER - 1) // size * size
    assert second.facts["num_cached_tokens"] == known
    assert f"{known} held by decode_0, which lends them" in second.facts["route"]
    lent = load_of(server, "prefill_0").tokens_borrowed - before
    assert lent == known - len(turn["input_ids"]) // size * size
    assert_nothing_left(server)


@pytest.fixture(scope="module")
def many() -> Iterator[TritonServer]:
    """Two simulated workers of each stage, which take 1 ms to read a token; every request is taken apart."""
    plain = override(load_deployment(SIM), http_port=0, grpc_port=0, metrics_port=0)
    prefill, decode = (
        msgspec.structs.replace(w, timing={"start_s": 0.0, "token_s": 1e-3}, max_queue=64) for w in plain.worker
    )
    workers: list[Worker] = [
        msgspec.structs.replace(w, name=f"{w.stage}_{n}") for w in (prefill, decode) for n in range(2)
    ]
    routing = msgspec.structs.replace(plain.routing, conditional_disaggregation=False)
    with TritonServer(msgspec.structs.replace(plain, worker=workers, routing=routing)) as running:
        yield running


def test_two_workers_keep_more_prompts_than_either_has_room_for() -> None:
    """Twenty-four prompts in turn, of which eighteen fit into one worker's memory: by itself it would have lost each by
    the time that it comes again."""
    plain = override(load_deployment(SIM), http_port=0, grpc_port=0, metrics_port=0)
    workers = [msgspec.structs.replace(w, kv_memory="792MiB") for w in plain.worker]  # 396 blocks of 16 tokens
    routing = msgspec.structs.replace(plain.routing, conditional_disaggregation=False)
    codec = TextCodec(Path(plain.model.path))
    turns = [make_turn(codec, seed=9500 + n, tokens=340) | {"max_tokens": 4} for n in range(24)]
    with TritonServer(msgspec.structs.replace(plain, worker=workers, routing=routing)) as server:
        for again in (False, True):
            answers = [ask_now(server.grpc_url, "llm", turn) for turn in turns]
            for turn, answer in zip(turns, answers, strict=True):
                check(turn, answer, codec)
            found = sum(answer.facts["num_cached_tokens"] > 0 for answer in answers)
            assert (found > 1) == again
            for worker in ("prefill_0", "decode_0"):
                until_known(server, worker)
        assert_nothing_left(server)


def borrowed(server: TritonServer) -> tuple[int, int]:
    """Tokens that prefill workers have borrowed, and times that they could not."""
    loads = [load_of(server, f"prefill_{n}") for n in range(2)]
    return sum(load.tokens_borrowed for load in loads), sum(load.borrows_failed for load in loads)


def check(turn: dict[str, Any], answer: Answer, codec: TextCodec) -> None:
    assert answer.error is None
    expected = expected_answer(turn["seed"], turn["input_ids"], turn["max_tokens"], codec.vocab_size)
    assert answer.output_ids == expected


def test_conversations_go_on_wherever_they_were_answered(many: TritonServer) -> None:
    """Simulated blocks name what they hold, so blocks of another text do not go unseen."""
    codec = TextCodec(Path(many.deployment.model.path))
    turns = [make_turn(codec, seed=8000 + 10 * n, tokens=600) for n in range(6)]
    answers = [ask_now(many.grpc_url, "llm", turn) for turn in turns]
    for worker in ("decode_0", "decode_1"):
        until_known(many, worker)
    for turn, answer in zip(turns, answers, strict=True):
        check(turn, answer, codec)
        following = next_turn(codec, turn | {"max_tokens": ANSWER}, answer)
        check(following, ask_now(many.grpc_url, "llm", following), codec)
    tokens, failed = borrowed(many)
    assert tokens >= 6 * (ANSWER - 32)
    assert failed == 0
    assert_nothing_left(many)


@pytest.mark.parametrize("way", [signal.SIGSTOP, signal.SIGKILL])
def test_without_its_lender_a_prompt_is_read(many: TritonServer, way: signal.Signals) -> None:
    """The lender stands still, or is gone, when it is asked: nobody waits for it for long, and nothing is lost."""
    codec = TextCodec(Path(many.deployment.model.path))
    turn = make_turn(codec, seed=9000 + 100 * way, tokens=600)
    answer = ask_now(many.grpc_url, "llm", turn)
    holder = answer.facts["decode_worker"]
    until_known(many, holder)
    failed = borrowed(many)[1]
    engine = find_engine(many, holder)
    engine.send_signal(way)
    try:
        following = next_turn(codec, turn, answer)
        check(following, ask_now(many.grpc_url, "llm", following), codec)
    finally:
        if way == signal.SIGSTOP:
            engine.send_signal(signal.SIGCONT)
    for worker in many.deployment.worker:
        load_of(many, worker.name)
    if way == signal.SIGSTOP:
        assert borrowed(many)[1] > failed
    assert_nothing_left(many)
