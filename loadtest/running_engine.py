"""An engine of one rank or of many as processes of its own, spoken to as a stage does."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from types import TracebackType

from tandem.deployment import Deployment, to_json
from tandem.engines.client import EngineProcess
from tandem.messages import (
    AnyWork,
    EngineError,
    EngineEvent,
    EngineReport,
    Events,
    Failed,
    Finished,
    Load,
    Pair,
    Prefilled,
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
        """``directory`` gets the deployment file and the log."""
        file = directory / f"{worker}.json"
        file.write_bytes(to_json(deployment))
        self.log_file = directory / f"{worker}.log"
        self.load = Load()
        self.first_tokens: dict[str, float] = {}
        """By request id: when the first token came (``time.perf_counter``)."""
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
        """Introduce another engine, so that KV can move."""
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
                if isinstance(event, Tokens):
                    self.first_tokens.setdefault(event.request_id, time.perf_counter())
                self._events.setdefault(event.request_id, []).append(event)

    def _next(self) -> EngineReport:
        report = self._reports.get(timeout=DEADLINE_S)
        if isinstance(report, str | EngineError):
            raise RuntimeError(f"the engine ended: {report}\n{self.log_file.read_text()[-4000:]}")
        return report
