"""Groups of all kinds, all paired with each other, and the hand-over of work from one to another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from running_engine import RunningEngine

from tandem.deployment import Deployment, Kv, Model, Parallel, Worker
from tandem.messages import Decode, EngineEvent, Generate, Partition, Prefill, Prefilled, Pulled, Tokens

PATIENCE_S = 120.0
"""Ranks wait for each other, on few cores."""


@contextlib.contextmanager
def run_engines(
    model_dir: Path, partitions: dict[str, Partition], mpi: str, directory: Path, kv: Kv, kv_memory: str = "32MiB"
) -> Iterator[dict[str, RunningEngine]]:
    """Engines of these names in float32, one thread and ``kv_memory`` a rank, every one paired with every other."""
    workers = [
        Worker(
            name=name,
            stage="prefill",  # others prepare to read from it; the engine itself does either stage's work
            tensor_parallel_size=partition.tensor_parallel_size,
            pipeline_parallel_size=partition.pipeline_parallel_size,
            threads=1,
            kv_memory=kv_memory,
        )
        for name, partition in partitions.items()
    ]
    kv = msgspec.structs.replace(kv, lease_s=PATIENCE_S, transfer_timeout_s=PATIENCE_S)
    deployment = Deployment(
        name="groups",
        model=Model(path=str(model_dir), dtype="float32"),
        worker=workers,
        kv=kv,
        parallel=Parallel(mpi=mpi, hang_timeout_s=30.0),  # type: ignore[arg-type]
    )
    with contextlib.ExitStack() as stack:
        engines = {n: stack.enter_context(RunningEngine(deployment, n, directory)) for n in partitions}
        for engine in engines.values():
            engine.wait_ready()
        for one in engines.values():
            for other in engines.values():
                if one is not other:
                    one.pair(other)
        yield engines


def hand_over(prefill: RunningEngine, decode: RunningEngine, work: list[Generate]) -> list[list[EngineEvent]]:
    """Do all of ``work`` in two stages, all at once: the events of both, save for the first one's last."""
    name = f"{prefill.info.worker_id}-{decode.info.worker_id}-{time.monotonic_ns()}"
    named = [msgspec.structs.replace(w, request_id=f"{name}-{i}") for i, w in enumerate(work)]
    first = prefill.run([Prefill(**_fields(w)) for w in named])
    second: list[Decode] = []
    for one, events in zip(named, first, strict=True):
        end = events[-1]
        assert isinstance(end, Prefilled), events
        assert end.handle is not None
        second.append(Decode(**_fields(one) | {"output_ids": tokens_of(events), "handle": end.handle}))
    return [a[:-1] + b for a, b in zip(first, decode.run(list(second)), strict=True)]


def tokens_of(events: list[EngineEvent]) -> list[int]:
    """The answer's tokens, checked to come in order and without gaps."""
    out: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            assert event.index == len(out)
            out += event.token_ids
    return out


def bytes_pulled(events: list[EngineEvent]) -> int:
    """KV that one hand-over moved."""
    (pulled,) = [event for event in events if isinstance(event, Pulled)]
    return pulled.bytes_moved


def _fields(work: Generate) -> dict[str, object]:
    return {name: getattr(work, name) for name in Generate.__struct_fields__}
