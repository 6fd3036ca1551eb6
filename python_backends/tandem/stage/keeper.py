"""Keeps one engine running, in one process or many: starts it, notices its end, starts it again with back-off."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tandem.engines.client import EngineProcess
from tandem.errors import TandemError
from tandem.messages import EngineCommand, EngineError, EngineReport, Events, Loading, Ready, WorkerInfo

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""Without progress in loading. Large weights from a slow disk may take longer in all."""
STOP_TIMEOUT_S = 10.0
FIRST_BACK_OFF_S = 0.5
MAX_BACK_OFF_S = 30.0


class EngineKeeper:
    """One engine process at a time. ``on_events`` and ``on_lost`` are called from the process's reader thread."""

    def __init__(
        self,
        deployment_file: Path,
        worker: str,
        log_file: Path,
        on_events: Callable[[Events], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._deployment_file = deployment_file
        self._worker = worker
        self._log_file = log_file
        self._on_events = on_events
        self._on_lost = on_lost
        self._process: EngineProcess | None = None
        self._info: WorkerInfo | None = None
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._last_error = ""
        self._loading: Loading | None = None
        self._progressed = 0.0
        """When loading last told of something new."""
        self._thread = threading.Thread(target=self._keep, name=f"keeper-{worker}", daemon=True)

    @property
    def info(self) -> WorkerInfo | None:
        """Who the running engine is; None while there is none."""
        return self._info

    def start(self) -> WorkerInfo:
        """Start the engine and wait until it is ready.

        Raises:
            TandemError: ``engine_failed`` with the engine's own words, when its first start fails.
        """
        self._progressed = time.monotonic()
        self._thread.start()
        with self._changed:
            self._wait_while_loading(lambda: self._info or self._last_error)
            if self._info:
                return self._info
        self.stop()
        reason = self._last_error or self._standstill()
        raise TandemError("engine_failed", f"worker {self._worker}: {reason} (log: {self._log_file})")

    def send(self, command: EngineCommand) -> bool:
        """Pass a command on; False when no engine is running."""
        process = self._process
        if process is None or self._info is None:
            return False
        process.send(command)
        return True

    def stop(self) -> None:
        """End the engine process and the thread that keeps it."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._thread.join(2 * STOP_TIMEOUT_S)

    def _keep(self) -> None:
        back_off_s = FIRST_BACK_OFF_S
        while not self._ended.is_set():
            started = time.monotonic()
            self._run_once()
            if time.monotonic() - started > MAX_BACK_OFF_S:
                back_off_s = FIRST_BACK_OFF_S
            self._ended.wait(back_off_s)
            back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)

    def _run_once(self) -> None:
        """Start one engine process and stay until it is gone or the keeper is stopped."""
        gone: list[str] = []

        def on_exit(reason: str) -> None:
            with self._changed:
                gone.append(reason)
                self._changed.notify_all()

        self._loading, self._progressed = None, time.monotonic()
        process = EngineProcess(
            self._deployment_file, self._worker, self._log_file, on_report=self._on_report, on_exit=on_exit
        )
        try:
            process.start()
        except (OSError, TandemError) as error:
            gone.append(f"cannot start: {error}")
        self._process = process
        with self._changed:
            if not self._wait_while_loading(lambda: gone or self._ended.is_set() or self._info):
                gone.append(self._standstill())
            self._changed.wait_for(lambda: gone or self._ended.is_set())
        was_ready, self._info, self._process = self._info is not None, None, None
        process.stop(STOP_TIMEOUT_S)
        if gone and not self._ended.is_set():
            self._report_loss(gone[0], was_ready)

    def _wait_while_loading(self, is_over: Callable[[], object]) -> bool:
        """Until it is over; False where loading makes no progress any more."""
        while not is_over():
            left_s = self._progressed + START_TIMEOUT_S - time.monotonic()
            if left_s <= 0:
                return False
            self._changed.wait(left_s)
        return True

    def _standstill(self) -> str:
        at = f" ({self._loading.what}, {100 * self._loading.fraction:.0f} %)" if self._loading else ""
        return f"loading has made no progress for {START_TIMEOUT_S:g} s{at}"

    def _report_loss(self, reason: str, was_ready: bool) -> None:
        log.error("engine of worker %s is gone: %s", self._worker, reason)
        with self._changed:
            self._last_error = self._last_error or reason
            self._changed.notify_all()
        if was_ready:
            try:
                self._on_lost(reason)
            except Exception:  # this thread must live to start the next engine
                log.exception("the loss of worker %s's engine was not passed on", self._worker)

    def _on_report(self, report: EngineReport) -> None:
        match report:
            case Events():
                self._on_events(report)
            case Loading():
                if report != self._loading:
                    self._loading, self._progressed = report, time.monotonic()
                log.debug("worker %s: %s, %.0f %%", self._worker, report.what, 100 * report.fraction)
            case EngineError():
                self._last_error = report.message
            case Ready():
                with self._changed:
                    self._info, self._last_error = report.worker, ""
                    self._changed.notify_all()
