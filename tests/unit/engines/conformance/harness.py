"""Engines under test: work in, all that they say about each request out."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tandem.engines.base import Engine
from tandem.messages import (
    AnyWork,
    BlocksStored,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    KvEvent,
    Load,
    Prefill,
    Prefilled,
    Sampling,
    Stopping,
    Tokens,
)

TIMEOUT_S = 60.0
ENDS = (Finished, Failed, Prefilled)


class Harness:
    """An engine and all that it has said."""

    def __init__(self, engine: Engine, *, lets_go_at_once: bool = True) -> None:
        """``lets_go_at_once``: the KV of handles that were given up is free as soon as they are."""
        self.engine = engine
        self._idle = ("queued", "running", "handles_held", *(["blocks_used"] if lets_go_at_once else []))
        self.load = Load()
        self.cached: set[int] = set()
        """Names of the blocks that can be reused, by what the engine has told."""
        self._incoming: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._of: dict[str, list[EngineEvent]] = {}
        engine.start(self._sink)

    def _sink(self, events: list[EngineEvent], load: Load, kv: Sequence[KvEvent] = ()) -> None:
        for change in kv:
            if isinstance(change, BlocksStored):
                self.cached.update(change.hashes)
            else:
                self.cached.difference_update(change.hashes)
        self.load = load
        for event in events:
            self._incoming.put(event)

    def run(self, *work: AnyWork) -> list[list[EngineEvent]]:
        """Submit, and wait until all have ended: the events of each."""
        self.engine.submit(list(work))
        return [self.wait(w.request_id) for w in work]

    def wait(self, request_id: str, *kinds: type) -> list[EngineEvent]:
        """All events of a request until one of ``kinds``; by default until its end, and then it is forgotten."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            events = self._of.setdefault(request_id, [])
            if events and isinstance(events[-1], kinds or ENDS):
                return events if kinds else self._of.pop(request_id)
            event = self._incoming.get(timeout=deadline - time.monotonic())
            self._of.setdefault(event.request_id, []).append(event)

    def heard_of(self, request_id: str) -> list[EngineEvent]:
        """What came after a request's end, or of one that was not waited for."""
        while not self._incoming.empty():
            event = self._incoming.get()
            self._of.setdefault(event.request_id, []).append(event)
        return self._of.get(request_id, [])

    def until(self, field: str, value: int) -> None:
        """Wait until a field of the load has this value."""
        deadline = time.monotonic() + TIMEOUT_S
        while getattr(self.load, field) != value:
            assert time.monotonic() < deadline, (field, value, self.load)
            time.sleep(0.002)

    def until_cached(self, names: Iterable[int]) -> None:
        """Wait until these blocks have been told of: a library may do so after the answer's end."""
        wanted, deadline = set(names), time.monotonic() + TIMEOUT_S
        while not wanted <= self.cached:
            assert time.monotonic() < deadline, wanted - self.cached
            time.sleep(0.002)

    def until_idle(self) -> Load:
        """Wait until nothing is queued, running or held."""
        for field in self._idle:
            self.until(field, 0)
        return self.load

    def until_at_least(self, field: str, value: int) -> None:
        """Wait until a field of the load has come to this value."""
        deadline = time.monotonic() + TIMEOUT_S
        while getattr(self.load, field) < value:
            assert time.monotonic() < deadline, (field, value, self.load)
            time.sleep(0.002)


def fresh_prompt(length: int, seed: int) -> list[int]:
    """Tokens that no prompt of another seed begins with."""
    rng = random.Random(f"prefix {seed}")
    return [rng.randrange(400) for _ in range(length)]


def make_work(request_id: str, token_ids: list[int], max_tokens: int = 8, **fields: Any) -> Generate:
    """Work for one engine; ``fields`` are of ``Stopping`` or of ``Sampling``."""
    stopping = {f: fields.pop(f) for f in ("min_tokens", "stop_token_ids") if f in fields}
    return Generate(
        request_id=request_id,
        token_ids=token_ids,
        sampling=Sampling(**fields),
        stopping=Stopping(max_tokens=max_tokens, **stopping),
    )


def as_prefill(work: Generate, output_ids: list[int] | None = None) -> Prefill:
    return Prefill(**_fields(work) | {"output_ids": output_ids or []})


def as_decode(work: Generate, output_ids: list[int], handle: bytes) -> Decode:
    return Decode(**_fields(work) | {"output_ids": output_ids}, handle=handle)


def _fields(work: Generate) -> dict[str, Any]:
    return {f: getattr(work, f) for f in Generate.__struct_fields__}


def tokens_of(events: list[EngineEvent], start: int = 0) -> list[int]:
    """The answer's tokens, checked to come in order and without gaps from index ``start`` on."""
    out: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            assert event.index == start + len(out)
            assert event.token_ids
            out += event.token_ids
    return out


def handle_of(events: list[EngineEvent]) -> bytes:
    end = events[-1]
    assert isinstance(end, Prefilled), end
    assert end.handle is not None
    return end.handle


def reason_of(events: list[EngineEvent], *, alone: bool = False) -> str:
    """Why a request ended; ``alone``: it has said nothing else."""
    end = events[-1]
    assert isinstance(end, Finished), end
    assert not alone or len(events) == 1, events
    return end.reason


def failure_of(events: list[EngineEvent]) -> Failed:
    """The failure that ended a request, which said nothing else."""
    (end,) = events
    assert isinstance(end, Failed), end
    return end


def changed(work: AnyWork, **changes: Any) -> Any:
    return msgspec.structs.replace(work, **changes)
