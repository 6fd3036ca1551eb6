"""Engines of one rank or of many as processes of their own, spoken to as a stage does."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from tandem.deployment import Deployment, Kv, Model, Parallel, Worker, to_json
from tandem.engines.client import EngineProcess
from tandem.messages import (
    AnyWork,
    Decode,
    EngineError,
    EngineEvent,
    EngineReport,
    Events,
    Failed,
    Finished,
    Generate,
    Load,
    Pair,
    Partition,
    Prefill,
    Prefilled,
    Pulled,
    Ready,
    Start,
    Tokens,
    WorkerInfo,
)

DEADLINE_S = 120.0
"""Only a broken engine takes this long."""
STOP_S = 10.0
LAST = (Finished, Failed, Prefilled)


class RunningEngine:
    """One worker's engine; ends with the block."""

    info: WorkerInfo

    def __init__(self, deployment: Deployment, worker: str, directory: Path) -> None:
        file = directory / "deployment.json"
        file.write_bytes(to_json(deployment))
        self.log_file = directory / f"{worker}.log"
        self.load = Load()
        self._reports: queue.SimpleQueue[EngineReport | str] = queue.SimpleQueue()
        self._process = EngineProcess(
            file, worker, self.log_file, on_report=self._reports.put, on_exit=self._reports.put
        )
        self._events: dict[str, list[EngineEvent]] = {}

    def __enter__(self) -> RunningEngine:
        self._process.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.stop(STOP_S)

    def wait_ready(self) -> None:
        """Wait until it has loaded."""
        while not isinstance(report := self._next(), Ready):
            pass
        self.info = report.worker

    def pair(self, peer: RunningEngine) -> None:
        self._process.send(Pair(peer=peer.info))

    def run(self, work: list[AnyWork]) -> list[list[EngineEvent]]:
        """Submit, and wait until all have ended: the events of each."""
        self._process.send(Start(work=work))
        return [self._wait(one.request_id) for one in work]

    def until_idle(self) -> Load:
        """Wait until nothing is queued, running or held."""
        while self.load.queued or self.load.running or self.load.blocks_used or self.load.handles_held:
            self._take(self._next())
        return self.load

    def _wait(self, request_id: str) -> list[EngineEvent]:
        while True:
            events = self._events.setdefault(request_id, [])
            if events and isinstance(events[-1], LAST):
                return self._events.pop(request_id)
            self._take(self._next())

    def _take(self, report: EngineReport) -> None:
        if isinstance(report, Events):
            self.load = report.load
            for event in report.events:
                self._events.setdefault(event.request_id, []).append(event)

    def _next(self) -> EngineReport:
        report = self._reports.get(timeout=DEADLINE_S)
        if isinstance(report, str | EngineError):
            raise AssertionError(f"the engine ended: {report}\n{self.log_file.read_text()[-4000:]}")
        return report


@contextlib.contextmanager
def run_engines(
    model_dir: Path, partitions: dict[str, Partition], mpi: str, directory: Path, block_size: int
) -> Iterator[dict[str, RunningEngine]]:
    """Engines of these names in float32, one thread a rank, every one paired with every other."""
    workers = [
        Worker(
            name=name,
            stage="prefill",  # others prepare to read from it; the engine itself does either stage's work
            tensor_parallel_size=partition.tensor_parallel_size,
            pipeline_parallel_size=partition.pipeline_parallel_size,
            threads=1,
            kv_memory="32MiB",
        )
        for name, partition in partitions.items()
    ]
    deployment = Deployment(
        name="groups",
        model=Model(path=str(model_dir), dtype="float32"),
        worker=workers,
        kv=Kv(block_size=block_size),
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
