"""Engines in processes of their own, as a stage runs them: two of TensorRT-LLM in one process would share its GPUs."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from tandem.deployment import Deployment, Worker, to_json
from tandem.engines.base import EventSink
from tandem.engines.client import EngineProcess
from tandem.errors import TandemError
from tandem.kv.handle import require_compatible
from tandem.messages import AnyWork, Cancel, EngineError, EngineReport, Events, Pair, Ready, Start, WorkerInfo

START_S = 600.0
STOP_S = 30.0


class ProcessEngine:
    """An ``Engine`` whose work another process does."""

    def __init__(self, deployment: Deployment, worker: Worker) -> None:
        """
        Raises:
            TandemError: ``engine_failed``: it cannot be started, and why.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-gpu-")
        file = Path(self._directory.name) / "deployment.json"
        file.write_bytes(to_json(deployment))
        self._info: WorkerInfo | None = None
        self._sink: EventSink | None = None
        self._end = ""
        self._known = threading.Event()
        log_file = Path(self._directory.name) / f"{worker.name}.log"
        self._process = EngineProcess(
            file, worker.name, log_file, on_report=self._on_report, on_exit=self._on_exit, silence_s=120.0
        )
        self._process.start()
        self._known.wait(START_S)
        if self._info is None:
            log_text = log_file.read_text(errors="replace")[-4000:]
            self.stop()
            raise TandemError("engine_failed", f"{worker.name}: {self._end or 'not ready in time'}\n{log_text}")

    @property
    def info(self) -> WorkerInfo:
        """Who this worker is."""
        assert self._info is not None
        return self._info

    def start(self, sink: EventSink) -> None:
        """Every event goes to ``sink`` from now on."""
        self._sink = sink

    def submit(self, work: list[AnyWork]) -> None:
        """Queue work."""
        self._process.send(Start(work=work))

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests."""
        self._process.send(Cancel(request_ids=request_ids))

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to move KV to or from ``peer``.

        Raises:
            TandemError: ``worker_incompatible``, which the process itself would only log.
        """
        require_compatible(self.info, peer)
        self._process.send(Pair(peer=peer))

    def stop(self) -> None:
        """End the process, and all that it started."""
        self._process.stop(STOP_S)
        self._directory.cleanup()

    def _on_report(self, report: EngineReport) -> None:
        match report:
            case Ready():
                self._info = report.worker
                self._known.set()
            case Events() if self._sink is not None:
                self._sink(report.events, report.load, report.kv)
            case EngineError():
                self._end = report.message

    def _on_exit(self, reason: str) -> None:
        self._end = self._end or reason
        self._known.set()
