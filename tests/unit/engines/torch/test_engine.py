"""The whole engine: two of them in one process, with KV moved by NIXL."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator

import pytest

from tandem.engines.torch.engine import TorchEngine, create
from tandem.kv.handle import KEY_VARIABLE
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    Prefill,
    Prefilled,
    Pulled,
    Tokens,
)
from tests.unit.engines.torch.support import VOCAB, make_deployment, make_model, make_work

TIMEOUT_S = 30.0


class Harness:
    """An engine and all that it has said."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.load = Load()
        self._incoming: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._of: dict[str, list[EngineEvent]] = {}
        engine.start(self._sink)

    def _sink(self, events: list[EngineEvent], load: Load) -> None:
        self.load = load
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
        patch.setenv(KEY_VARIABLE, "5a" * 32)
        deployment = make_deployment(make_model("llama", tmp_path_factory.mktemp("llama")), max_batch_size=8)
        engines = [create(deployment, w, epoch=i + 1, loading=lambda *_: None) for i, w in enumerate(deployment.worker)]
    for engine, peer in zip(engines, reversed(engines), strict=True):
        engine.pair(peer.info)
    yield Harness(engines[0]), Harness(engines[1])
    for engine in engines:
        engine.stop()


def make_prompts(count: int, longest: int = 200) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def tokens_of(events: list[EngineEvent]) -> list[int]:
    """The answer's tokens, checked to come in order and without gaps."""
    out: list[int] = []
    first = next((e.index for e in events if isinstance(e, Tokens)), 0)
    for event in events:
        if isinstance(event, Tokens):
            assert event.index == first + len(out)
            out += event.token_ids
    return out


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
    second = decode.run(
        [as_decode(w, s, e[-1].handle) for w, s, e in zip(work, starts, first, strict=True)]  # type: ignore[union-attr]
    )
    for events in second:
        assert isinstance(events[0], Pulled)
        assert isinstance(events[-1], Finished), events[-1]
    return [s + tokens_of(e) for s, e in zip(starts, second, strict=True)]


def test_two_engines_answer_as_one(pair: tuple[Harness, Harness]) -> None:
    """Prefill here, KV by NIXL, decode there: the same tokens as one engine doing both, greedy and sampled."""
    work = [
        make_work(f"same-{i}", p, max_tokens=20, temperature=0.7 * (i % 2), top_p=0.95, seed=i)
        for i, p in enumerate(make_prompts(12))
    ]
    together = [tokens_of(e) for e in pair[1].run(work)]
    apart = in_two_stages(pair, work)
    assert apart == together
    assert all(len(answer) == 20 for answer in apart)
    for harness in pair:
        assert harness.until_idle().handles_held == 0
