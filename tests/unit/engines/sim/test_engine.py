"""What is the simulated engine's own by the real clock; the rest is in the conformance suite."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Deployment, Faults, Kv, Model, Worker
from tandem.engines.sim.engine import SimEngine, create
from tandem.engines.sim.tokens import expected_answer
from tandem.errors import TandemError
from tandem.keys import KEY_VARIABLE
from tests.unit.engines.conformance.harness import (
    Harness,
    as_decode,
    as_prefill,
    failure_of,
    handle_of,
    make_work,
    tokens_of,
)

VOCAB = 5000
PROMPT = list(range(100))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "5a" * 32)


def deploy(directory: Path, **worker: Any) -> Deployment:
    (directory / "config.json").write_text(json.dumps({"vocab_size": VOCAB}))
    common = {"engine": "sim", "profile": "instant"} | worker
    return Deployment(
        name="test",
        model=Model(path=str(directory)),
        worker=[
            Worker(name="prefill_0", stage="prefill", **common),
            Worker(name="decode_0", stage="decode", **common),
        ],
        kv=Kv(block_size=16, transfer_timeout_s=30.0),
    )


def build(deployment: Deployment, place: int) -> SimEngine:
    engine = create(deployment, deployment.worker[place], epoch=place + 1, loading=lambda _what, _done: None)
    assert isinstance(engine, SimEngine)
    return engine


def test_a_pull_that_brings_other_tokens_is_noticed(tmp_path: Path) -> None:
    """Blocks that somebody else wrote to while the handle was held: decode sees what it pulled, and refuses it."""
    deployment = deploy(tmp_path)
    engines = [build(deployment, 0), build(deployment, 1)]
    try:
        engines[0].pair(engines[1].info)
        engines[1].pair(engines[0].info)
        prefill, decode = map(Harness, engines)
        for request_id, is_spoilt in (("good", False), ("spoilt", True)):
            work = make_work(request_id, [len(request_id), *PROMPT])
            (first,) = prefill.run(as_prefill(work))
            if is_spoilt:
                contents = engines[0]._worker._contents
                assert contents is not None
                contents.write(range(10), [0] * 10)
            (second,) = decode.run(as_decode(work, tokens_of(first), handle_of(first)))
            if is_spoilt:
                assert "not those of the request's tokens" in failure_of(second).message
            else:
                answer = tokens_of(first) + tokens_of(second, start=1)
                assert answer == expected_answer(0, work.token_ids, 8, VOCAB)
        decode.until_idle()
    finally:
        for engine in engines:
            engine.stop()


def test_starting_takes_its_time_and_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    deployment = deploy(tmp_path, timing={"start_s": 0.3})
    engine = create(deployment, deployment.worker[0], epoch=1, loading=lambda what, done: told.append((what, done)))
    engine.stop()
    fractions = [done for what, done in told if what == "simulated weights"]
    assert fractions == sorted(fractions)
    assert all(0 <= done < 1 for done in fractions)
    assert told[-1] == ("transfer", 0.0)


def test_a_crash_on_demand_ends_the_engine_thread_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine process ends with the thread, and says why."""
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    engine = build(deploy(tmp_path, faults=Faults(crash_after=2)), 1)
    try:
        harness = Harness(engine)
        harness.run(make_work("first", [1]))
        engine.submit([make_work("second", [1])])
        engine._thread.join(30.0)
        assert [str(args.exc_value) for args in died] == [
            "crashed on demand after 2 requests (worker.faults.crash_after)"
        ]
    finally:
        engine.stop()


def test_the_kv_memory_of_the_profile_is_counted_in_blocks_of_its_size(tmp_path: Path) -> None:
    engine = build(deploy(tmp_path, profile="h100-llama-3.1-8b", timing={"start_s": 0.0}, kv_memory="1GiB"), 0)
    engine.stop()
    assert engine.info.transfers[0].num_blocks == (1 << 30) // (16 * 131_072)
    assert engine.info.transfers[0].block_bytes == 32 * 8
    assert (engine.info.vocab_size, engine.info.max_model_len) == (VOCAB, 131_072)


@pytest.mark.parametrize(
    ("spoil", "worker", "words"),
    [
        (lambda d: (d / "config.json").write_text("{}"), {}, "cannot read the field vocab_size of .*config.json"),
        (lambda d: (d / "config.json").unlink(), {}, "cannot read the field vocab_size of .*config.json"),
        (
            lambda _d: None,
            {"profile": "h100-llama-3.1-8b", "kv_memory": "1MiB"},
            r"worker.kv_memory: 1MiB holds no KV block of 2097152 bytes \(profile 'h100-llama-3.1-8b'\)",
        ),
    ],
)
def test_what_cannot_be_built_is_named(tmp_path: Path, spoil: Any, worker: dict[str, Any], words: str) -> None:
    deployment = deploy(tmp_path, **worker)
    spoil(tmp_path)
    with pytest.raises(TandemError, match=words):
        build(deployment, 0)
