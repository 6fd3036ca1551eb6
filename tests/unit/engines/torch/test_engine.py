"""The whole engine: two of them in one process, with KV moved by NIXL."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.deployment import Kv
from tandem.engines.torch.engine import TorchEngine, create
from tandem.keys import KEY_VARIABLE
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generate,
    KvEvent,
    Load,
    Prefill,
    Prefilled,
    Pulled,
    Sampling,
    Stopping,
    Tokens,
)
from tests.unit.engines.torch.support import make_deployment, make_model, make_prompts, make_work

TIMEOUT_S = 30.0
KEY = "5a" * 32


class Harness:
    """An engine and all that it has said."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.load = Load()
        self.kv: list[KvEvent] = []
        self._incoming: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._of: dict[str, list[EngineEvent]] = {}
        engine.start(self._sink)

    def _sink(self, events: list[EngineEvent], load: Load, kv: Sequence[KvEvent] = ()) -> None:
        self.load = load
        self.kv += kv
        for event in events:
            self._incoming.put(event)

    def run(self, work: list[AnyWork]) -> list[list[EngineEvent]]:
        """Submit, and wait until all have ended: the events of each."""
        self.engine.submit(work)
        return [self.wait(w.request_id) for w in work]

    def wait(self, request_id: str, *kinds: type) -> list[EngineEvent]:
        """All events of a request until one of ``kinds``, by default its end."""
        last = kinds or (Finished, Failed, Prefilled)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            events = self._of.setdefault(request_id, [])
            if events and isinstance(events[-1], last):
                return self._of.pop(request_id) if not kinds else events
            event = self._incoming.get(timeout=deadline - time.monotonic())
            self._of.setdefault(event.request_id, []).append(event)

    def until_idle(self) -> Load:
        """Wait until nothing is queued or running and no block is used."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.load.queued or self.load.running or self.load.blocks_used:
            assert time.monotonic() < deadline, self.load
            time.sleep(0.002)
        return self.load


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Harness, Harness]]:
    """A prefill and a decode engine on the same random model, paired."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        deployment = make_deployment(make_model("llama", tmp_path_factory.mktemp("llama")), max_batch_size=8)
        deployment = msgspec.structs.replace(deployment, kv=Kv(block_size=4, lease_s=TIMEOUT_S))
        engines = [create(deployment, w, epoch=i + 1, loading=lambda *_: None) for i, w in enumerate(deployment.worker)]
    for engine, peer in zip(engines, reversed(engines), strict=True):
        engine.pair(peer.info)
    yield Harness(engines[0]), Harness(engines[1])
    for engine in engines:
        engine.stop()


def random_prompts(count: int, longest: int = 200) -> list[list[int]]:
    rng = random.Random(count)
    return make_prompts(*(rng.randrange(1, longest) for _ in range(count)))


def tokens_of(events: list[EngineEvent]) -> list[int]:
    """The answer's tokens, checked to come in order and without gaps."""
    out: list[int] = []
    first = next((e.index for e in events if isinstance(e, Tokens)), 0)
    for event in events:
        if isinstance(event, Tokens):
            assert event.index == first + len(out)
            out += event.token_ids
    return out


def handle_of(events: list[EngineEvent]) -> bytes:
    end = events[-1]
    assert isinstance(end, Prefilled)
    assert end.handle is not None
    return end.handle


def end_of(events: list[EngineEvent]) -> FinishReason:
    end = events[-1]
    assert isinstance(end, Finished), end
    return end.reason


def as_prefill(work: Generate) -> Prefill:
    return Prefill(**{f: getattr(work, f) for f in Generate.__struct_fields__})


def as_decode(work: Generate, output_ids: list[int], handle: bytes) -> Decode:
    fields = {f: getattr(work, f) for f in Generate.__struct_fields__} | {"output_ids": output_ids}
    return Decode(**fields, handle=handle)


def in_two_stages(pair: tuple[Harness, Harness], work: list[Generate]) -> list[list[int]]:
    """The answers that prefill and decode make together."""
    prefill, decode = pair
    first = prefill.run([as_prefill(w) for w in work])
    starts = [tokens_of(events) for events in first]
    second = decode.run([as_decode(w, s, handle_of(e)) for w, s, e in zip(work, starts, first, strict=True)])
    for events in second:
        assert isinstance(events[0], Pulled)
        assert isinstance(events[-1], Finished), events[-1]
    return [s + tokens_of(e) for s, e in zip(starts, second, strict=True)]


def test_two_engines_answer_as_one(pair: tuple[Harness, Harness]) -> None:
    """Prefill here, KV by NIXL, decode there: the same tokens as one engine doing both, greedy and sampled."""
    work = [
        make_work(f"same-{i}", p, max_tokens=20, temperature=0.7 * (i % 2), top_p=0.95, seed=i)
        for i, p in enumerate(random_prompts(12))
    ]
    together = [tokens_of(e) for e in pair[1].run(work)]
    apart = in_two_stages(pair, work)
    assert apart == together
    assert all(len(answer) == 20 for answer in apart)
    for harness in pair:
        assert harness.until_idle().handles_held == 0


def test_a_short_hand_over_is_made_up_for(pair: tuple[Harness, Harness]) -> None:
    """A request that moved with several answer tokens, of which the handle covers none."""
    prefill, decode = pair
    (prompt,) = make_prompts(30)
    work = make_work("short", prompt, max_tokens=12, temperature=1.0, seed=3)
    whole = tokens_of(decode.run([work])[0])
    events = prefill.run([as_prefill(work)])[0]
    rest = decode.run([as_decode(work, whole[:5], handle_of(events))])[0]
    assert whole[:5] + tokens_of(rest) == whole


def test_a_replayed_prefill_covers_prompt_and_answer(pair: tuple[Harness, Harness]) -> None:
    """After a loss, prefill reads prompt and answer so far, and the answer goes on as if nothing had happened."""
    prefill, decode = pair
    (prompt,) = make_prompts(30)
    work = make_work("replay", prompt, max_tokens=12, temperature=1.0, seed=4)
    whole = tokens_of(decode.run([work])[0])
    events = prefill.run([msgspec.structs.replace(as_prefill(work), output_ids=whole[:5])])[0]
    assert tokens_of(events) == whole[5:6]
    assert isinstance(events[0], Tokens)
    assert events[0].index == 5
    rest = decode.run([as_decode(work, whole[:6], handle_of(events))])[0]
    assert whole[:6] + tokens_of(rest) == whole


def test_an_answer_that_ends_with_its_first_token_has_no_handle(pair: tuple[Harness, Harness]) -> None:
    (prompt,) = make_prompts(20)
    work = make_work("one", prompt, max_tokens=1)
    events = pair[0].run([as_prefill(work)])[0]
    assert len(tokens_of(events)) == 1
    assert events[-1] == msgspec.structs.replace(events[-1], handle=None, finish_reason="length")
    stopping = Stopping(max_tokens=10, stop_token_ids=tuple(tokens_of(events)))
    events = pair[0].run([msgspec.structs.replace(as_prefill(work), stopping=stopping)])[0]
    assert events[-1] == msgspec.structs.replace(events[-1], handle=None, finish_reason="stop")
    pair[0].until_idle()


def test_stop_tokens_end_an_answer(pair: tuple[Harness, Harness]) -> None:
    (prompt,) = make_prompts(20)
    whole = tokens_of(pair[1].run([make_work("long", prompt, max_tokens=20)])[0])
    end = next(i for i, t in enumerate(whole) if i >= 3 and t not in whole[:i])
    work = msgspec.structs.replace(
        make_work("stopped", prompt), stopping=Stopping(max_tokens=20, stop_token_ids=(whole[end],))
    )
    events = pair[1].run([work])[0]
    assert tokens_of(events) == whole[: end + 1]
    assert end_of(events) == "stop"


@pytest.mark.parametrize("stage", [0, 1])
def test_cancel_ends_a_request_and_frees_its_blocks(pair: tuple[Harness, Harness], stage: int) -> None:
    harness = pair[stage]
    work = [make_work(f"cancel-{stage}-{i}", p, max_tokens=300) for i, p in enumerate(random_prompts(12))]
    harness.engine.submit(list(work))
    harness.wait(work[0].request_id, Tokens)
    harness.engine.cancel([w.request_id for w in work] + ["never heard of"])
    for w in work:
        assert end_of(harness.wait(w.request_id)) == "cancelled"
    harness.until_idle()


def test_cancel_during_pulls_frees_both_sides(pair: tuple[Harness, Harness]) -> None:
    """Whatever the pull's fate when the cancel arrives: the request ends, and no block or lease is left."""
    prefill, decode = pair
    work = [make_work(f"torn-{i}", p, max_tokens=300) for i, p in enumerate(random_prompts(6))]
    first = prefill.run([as_prefill(w) for w in work])
    decodes = [as_decode(w, tokens_of(e), handle_of(e)) for w, e in zip(work, first, strict=True)]
    decode.engine.submit(list(decodes))
    decode.engine.cancel([w.request_id for w in work])
    prefill.engine.cancel([w.request_id for w in work])
    for w in work:
        assert end_of(decode.wait(w.request_id)) == "cancelled"
    for harness in pair:
        assert harness.until_idle().handles_held == 0


def test_a_cancelled_lease_is_refused(pair: tuple[Harness, Harness]) -> None:
    prefill, decode = pair
    (prompt,) = make_prompts(20)
    work = make_work("given-up", prompt)
    events = prefill.run([as_prefill(work)])[0]
    prefill.engine.cancel(["given-up"])
    assert prefill.until_idle().handles_held == 0
    end = decode.run([as_decode(work, tokens_of(events), handle_of(events))])[0][-1]
    assert isinstance(end, Failed)
    assert end.code == "lease_cancelled"
    for harness in pair:
        assert harness.until_idle().handles_held == 0


def test_an_expired_lease_is_refused(
    pair: tuple[Harness, Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle prefill engine ends leases by itself, and frees their blocks."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    deployment = make_deployment(make_model("llama", tmp_path), name="hasty")
    deployment = msgspec.structs.replace(deployment, kv=Kv(block_size=4, lease_s=0.05))
    engine = create(deployment, deployment.worker[0], epoch=7, loading=lambda *_: None)
    try:
        engine.pair(pair[1].engine.info)
        pair[1].engine.pair(engine.info)
        hasty = Harness(engine)
        work = make_work("expired", [1, 2, 3])
        events = hasty.run([as_prefill(work)])[0]
        assert hasty.until_idle().handles_expired == 1
        end = pair[1].run([as_decode(work, tokens_of(events), handle_of(events))])[0][-1]
        assert isinstance(end, Failed)
        assert end.code == "lease_expired"
    finally:
        engine.stop()


def test_handles_that_do_not_fit_are_refused(pair: tuple[Harness, Harness]) -> None:
    prefill, decode = pair
    (prompt,) = make_prompts(20)
    work = make_work("handle", prompt)
    events = prefill.run([as_prefill(work)])[0]
    start, handle = tokens_of(events), handle_of(events)
    good = as_decode(work, start, handle)
    wrong = {
        "handle_forged": msgspec.structs.replace(good, handle=handle[:-1] + bytes([handle[-1] ^ 1])),
        "handle_malformed": msgspec.structs.replace(good, handle=handle[:-40]),
        "handle_tokens": msgspec.structs.replace(good, token_ids=[(prompt[0] + 1) % 400, *prompt[1:]]),
        "invalid_request": msgspec.structs.replace(good, output_ids=[]),
    }
    for code, bad in wrong.items():
        end = decode.run([bad])[0][-1]
        assert isinstance(end, Failed)
        assert end.code == code
    assert isinstance(decode.run([good])[0][-1], Finished)
    end = decode.run([msgspec.structs.replace(good, request_id="again")])[0][-1]
    assert isinstance(end, Failed)
    assert end.code == "handle_used"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"token_ids": []}, "invalid_request", "token_ids: is empty"),
        ({"token_ids": [1, 400]}, "invalid_request", "token_ids: 400 is no token; ids go from 0 to 399"),
        ({"token_ids": [-1]}, "invalid_request", "token_ids: -1 is no token"),
        ({"token_ids": [1] * 512}, "prompt_too_long", "512 prompt tokens; this model takes at most 511"),
        ({"stopping": Stopping(max_tokens=0)}, "invalid_request", "max_tokens: 0; after 2 prompt tokens"),
        ({"stopping": Stopping(max_tokens=511)}, "invalid_request", "must lie from 1 to 510"),
        ({"stopping": Stopping(max_tokens=5, min_tokens=6)}, "invalid_request", "min_tokens: 6"),
        ({"stopping": Stopping(max_tokens=5, stop_token_ids=(999,))}, "invalid_request", "stop_token_ids: 999"),
        ({"output_ids": [1] * 8}, "invalid_request", "max_tokens: 8, but the answer has 8 tokens already"),
        ({"sampling": Sampling(temperature=float("nan"))}, "invalid_request", "temperature: nan"),
        ({"sampling": Sampling(temperature=-1.0)}, "invalid_request", "temperature: -1.0"),
        ({"sampling": Sampling(top_p=0.0)}, "invalid_request", "top_p: 0.0"),
        ({"sampling": Sampling(top_k=-1)}, "invalid_request", "top_k: -1"),
        ({"sampling": Sampling(min_p=1.5)}, "invalid_request", "min_p: 1.5"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "invalid_request", "repetition_penalty: 0.0"),
        ({"sampling": Sampling(logprobs=-1)}, "invalid_request", "logprobs: -1"),
    ],
)
def test_bad_requests_are_refused_by_name(
    pair: tuple[Harness, Harness], changes: dict[str, Any], code: str, words: str
) -> None:
    work = msgspec.structs.replace(make_work("bad", [1, 2]), **changes)
    end = pair[1].run([work])[0][-1]
    assert isinstance(end, Failed)
    assert (end.code, words in end.message) == (code, True), end.message


def test_a_request_in_hand_is_not_taken_twice(pair: tuple[Harness, Harness]) -> None:
    work = make_work("twin", [1, 2, 3], max_tokens=200)
    pair[1].engine.submit([work, work])
    end = pair[1].wait("twin")[-1]
    assert isinstance(end, Failed)
    assert "in hand already" in end.message
    assert isinstance(pair[1].wait("twin")[-1], Finished)


def test_a_failing_step_fails_its_requests_only(pair: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause is told, the blocks come back, and the engine goes on."""
    harness = pair[1]
    work = [make_work(f"broken-{i}", p) for i, p in enumerate(random_prompts(3))]
    before = [tokens_of(e) for e in harness.run(list(work))]
    runner = harness.engine._runner
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda _step: 1 // 0)
        for events in harness.run(list(work)):
            end = events[-1]
            assert isinstance(end, Failed)
            assert (end.code, "ZeroDivisionError" in end.message) == ("engine_failed", True)
    harness.until_idle()
    assert [tokens_of(e) for e in harness.run(list(work))] == before


def test_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 requests where 3 fit at a time all end, in order of arrival; one that can never fit fails at once."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    deployment = make_deployment(make_model("llama", tmp_path), kv_memory="96KiB")
    engine = create(deployment, deployment.worker[1], epoch=1, loading=lambda *_: None)
    try:
        harness = Harness(engine)
        blocks = 96 * 1024 // engine.info.transfers[0].block_bytes
        hopeless = make_work("hopeless", [1] * (4 * blocks), max_tokens=2)
        work = [make_work(f"small-{i}", [i] * 30, max_tokens=12) for i in range(40)]
        harness.engine.submit([*work, hopeless])
        end = harness.wait("hopeless")[-1]
        assert isinstance(end, Failed)
        assert (end.code, f"has {blocks} (worker.kv_memory)" in end.message) == ("prompt_too_long", True)
        assert all(len(tokens_of(harness.wait(w.request_id))) == 12 for w in work)
        harness.until_idle()
    finally:
        engine.stop()


def test_many_short_requests_with_cancellations_leave_nothing_behind(pair: tuple[Harness, Harness]) -> None:
    """300 requests through both stages, a fifth of them cancelled at random moments: all end, and all is given back."""
    prefill, decode = pair
    rng = random.Random(0)
    ends = 0
    for round_ in range(10):
        work = [
            make_work(f"{round_}-{i}", p, max_tokens=rng.randrange(1, 12), temperature=1.0, seed=i)
            for i, p in enumerate(random_prompts(30, 60))
        ]
        doomed = {w.request_id for w in work if rng.random() < 0.2}
        prefill.engine.submit([as_prefill(w) for w in work])
        prefill.engine.cancel([r for r in doomed if rng.random() < 0.5])
        decodes = []
        for w in work:
            events = prefill.wait(w.request_id)
            if isinstance(events[-1], Prefilled) and events[-1].handle is not None:
                decodes.append(as_decode(w, tokens_of(events), events[-1].handle))
            else:
                ends += 1
        decode.engine.submit(list(decodes))
        decode.engine.cancel([w.request_id for w in decodes if w.request_id in doomed])
        for w in decodes:
            end = decode.wait(w.request_id)[-1]
            assert isinstance(end, Finished), end
            ends += 1
        prefill.engine.cancel([w.request_id for w in work])
    assert ends == 300
    for harness in pair:
        assert harness.until_idle().handles_held == 0
