"""The stage's end of an engine process, or of an engine group's supervisor: starts it, talks to it, notices its end or
its silence. Never waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from tandem.deployment import Worker, load_deployment
from tandem.kv.copying import add_copying
from tandem.messages import EngineCommand, EngineError, EngineReport, Ready, Stop, decoder, encode

log = logging.getLogger(__name__)

POLL_MS = 100
TAIL_BYTES = 4000
TAIL_LINES = 12
ENGINE_MODULE = "tandem.engines.server"
KILL_TIMEOUT_S = 5.0
_report_decoder: msgspec.msgpack.Decoder[EngineReport] = decoder(EngineReport)
_PACKAGES = Path(__file__).resolve().parents[2]


class EngineProcess:
    """One engine process, started once. A thread reads its reports and watches it; both callbacks come from there."""

    def __init__(
        self,
        deployment_file: Path,
        worker: str,
        log_file: Path,
        *,
        on_report: Callable[[EngineReport], None],
        on_exit: Callable[[str], None],
        silence_s: float = 15.0,
        start_s: float = 120.0,
        engine: str | None = None,
    ) -> None:
        """``on_exit`` is called once, when the process is gone, with how it ended and why; ``log_file`` gets what it
        writes. One that reports nothing for ``silence_s`` seconds is killed, or for ``start_s`` until it is ready: it
        reads its libraries from a cold disk, and has the network's library register all of its memory, with many others
        at once. ``engine`` replaces the deployment's: a name or ``module:function``."""
        self._deployment_file, self._worker = deployment_file, worker
        self._arguments = ["--deployment", str(deployment_file), "--worker", worker]
        if engine is not None:
            self._arguments += ["--engine", engine]
        self._log_file = log_file
        self._on_report = on_report
        self._on_exit = on_exit
        self._silence_s, self._start_s = silence_s, start_s
        self._error: str | None = None
        """Why the process ends, in its own words."""
        self._is_ready = False
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._commands: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name=f"engine-{worker}", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, once started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: no directory, log file or process can be made.
            TandemError: the deployment cannot be read.
        """
        module = self._choose_module()
        self._directory = Path(tempfile.mkdtemp(prefix="tandem-", dir=_short_temp_dir()))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = f"ipc://{self._directory}/engine"
        self._reports = self._context.socket(zmq.PULL)
        self._reports.set_hwm(0)
        self._reports.bind(f"{endpoint}.reports")
        self._commands = self._context.socket(zmq.PUSH)
        self._commands.set_hwm(0)
        self._commands.connect(f"{endpoint}.commands")
        theirs, self._parent_fd = os.pipe()
        try:
            self._process = self._launch(module, endpoint, theirs)
        except OSError:
            self._clean_up()
            raise
        finally:
            os.close(theirs)
        self._thread.start()

    def send(self, command: EngineCommand) -> None:
        """Send a command; does nothing when the process is gone."""
        data = encode(command)
        with self._lock:
            if self._commands is not None:
                self._commands.send(data)

    def stop(self, timeout_s: float) -> None:
        """Ask the process to end, then make it: Stop for half of the time, SIGTERM for the other half, SIGKILL."""
        if self._process is None:
            return
        self.send(Stop())
        if not self._gone.wait(timeout_s / 2):
            self._signal(signal.SIGTERM)
        if not self._gone.wait(timeout_s / 2):
            self.kill()

    def kill(self) -> None:
        """End the process and its children at once."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        if threading.current_thread() is not self._thread and not self._gone.wait(KILL_TIMEOUT_S):
            log.error("engine process %s survives SIGKILL", self.pid)

    def _choose_module(self) -> str:
        workers = load_deployment(self._deployment_file).worker
        found = next((worker for worker in workers if worker.name == self._worker), None)
        return choose_module(found) if found else ENGINE_MODULE  # which says that there is no such worker

    def _launch(self, module: str, endpoint: str, parent_fd: int) -> subprocess.Popen[bytes]:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [find_python(), "-m", module, *self._arguments, *_connections(endpoint, str(parent_fd))]
        with self._log_file.open("ab") as output:
            self._log_start = output.tell()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                close_fds=True,
                pass_fds=(parent_fd,),
            )

    # ------------------------------------------------------------ the watching thread

    def _watch(self) -> None:
        try:
            reason = self._read_reports()
        except Exception as error:
            log.exception("reading the reports of engine process %s failed", self.pid)
            reason = f"its reports cannot be read ({error!r}), killed"
        if self._error is not None:
            reason = f"{reason}: {self._error}"
        elif words := self._last_words():
            reason = f"{reason}; its last words:\n{words}"
        self._clean_up()
        self._gone.set()
        self._on_exit(reason)

    def _read_reports(self) -> str:
        """Pass reports on until the process is gone; why it is."""
        heard = time.monotonic()
        while True:
            patience_s = self._silence_s if self._is_ready else self._start_s
            if self._reports.poll(POLL_MS):
                self._pass_on(self._reports.recv())
                heard = time.monotonic()
            elif (end := self._find_end()) is not None:
                while self._reports.poll(POLL_MS):
                    self._pass_on(self._reports.recv())
                return end
            elif time.monotonic() - heard > patience_s:
                self._signal(signal.SIGKILL)
                return f"no sign of life for {patience_s:g} s, killed"

    def _pass_on(self, data: bytes) -> None:
        try:
            report = _report_decoder.decode(data)
            if isinstance(report, EngineError):
                self._error = report.message
            self._is_ready |= isinstance(report, Ready)
            self._on_report(report)
        except msgspec.DecodeError as error:
            log.error("dropped a report of engine process %s: %s", self.pid, error)
        except Exception:
            log.exception("a report of engine process %s was not taken", self.pid)

    def _find_end(self) -> str | None:
        """How the process ended, None if it has not; it is not reaped yet, so its id stays its own."""
        assert self._process is not None
        try:
            end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return "ended"  # reaped by somebody else
        if end is None:
            return None
        if end.si_code == os.CLD_EXITED:
            return f"exit status {end.si_status}"
        return f"killed by {signal.Signals(end.si_status).name}"

    def _last_words(self) -> str:
        try:
            with self._log_file.open("rb") as output:
                size = output.seek(0, os.SEEK_END)
                output.seek(max(self._log_start, size - TAIL_BYTES))
                lines = output.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-TAIL_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        """To the process and to its group, which it makes its own when it starts."""
        with self._lock:
            if self._process is None or self._process.returncode is not None:
                return
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(self._process.pid, number)

    def _clean_up(self) -> None:
        """End what the process left behind, reap it, and give everything back."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_TIMEOUT_S)
        os.close(self._parent_fd)
        with self._lock:
            if self._commands is not None:
                self._commands.close(linger=0)
            self._commands = None
        self._reports.close(linger=0)
        self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)


def choose_module(worker: Worker) -> str:
    """What to run: the engine itself, or the supervisor of its ranks."""
    return "tandem.parallel.supervisor" if worker.group_size > 1 else ENGINE_MODULE


def outline_command(deployment_file: Path, worker: Worker, python: str, endpoint: str) -> list[str]:
    """The command of a worker's process, as far as it is known before it is started."""
    arguments = ["--deployment", str(deployment_file), "--worker", worker.name]
    return [python, "-m", choose_module(worker), *arguments, *_connections(endpoint, "N")]


def _connections(endpoint: str, parent_fd: str) -> list[str]:
    return ["--endpoint", endpoint, "--parent-fd", parent_fd]


def find_python() -> str:
    """The interpreter for engine processes: TANDEM_PYTHON, else this one (embedded in Triton it has another name)."""
    if given := os.environ.get("TANDEM_PYTHON"):
        return given
    if sys.executable and Path(sys.executable).name.startswith("python"):
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")


def _environment() -> dict[str, str]:
    """Ours, this very package first on the path, and how KV is copied."""
    path = os.pathsep.join([str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    return add_copying({**os.environ, "PYTHONPATH": path})


def _short_temp_dir() -> str:
    """A socket's path has at most 107 bytes."""
    directory = tempfile.gettempdir()
    return directory if len(directory) <= 60 else "/tmp"
