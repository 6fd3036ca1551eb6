"""One Triton server as a supervised child process: started, awaited, and ended with all that hangs on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tandem.deployment import Deployment, to_json
from tandem.drain import drain
from tandem.errors import TandemError
from tandem.keys import FILE_VARIABLE, KEY_VARIABLE, load_keys, management_word
from tandem.tls import server_context
from tandem.triton.command import LOOPBACK, check_shared_memory, http_host, server_command
from tandem.triton.home import home_dir, own_key_file, templates_dir
from tandem.triton.layout import lay_out
from tandem.triton.metrics_door import MetricsDoor
from tandem.triton.ports import Ports, choose_ports, free_port
from tandem.triton.processes import RUN_VARIABLE, end_run
from tandem.triton.run_directory import RunDirectory
from tandem.triton.runtime import TritonRuntime, find_runtime
from tandem.triton.server_log import ServerLog

STOP_GRACE_S = 15.0
"""From the request to stop until everything is killed. Triton itself waits 5 s for its models to unload."""

_DRAIN_TIMEOUT_S = 12.0
"""For the orchestrator to end its requests and close its lanes, before Triton is told. Workers may take
``limits.drain_s`` and a little more."""

_POLL_S = 0.1
_REAP_S = 5.0
_READY_TIMEOUT_S = 600.0

_Part = TypeVar("_Part")

Progress = Callable[[str], None]
"""Takes one line on what is being awaited, whenever that changes."""


class TritonServer:
    """``with TritonServer(deployment) as server:`` — inside, the server is ready; afterwards nothing is left of it.

    The constructor does nothing but note; ``start`` and ``stop`` are what ``with`` calls.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        templates: Path | None = None,
        ready_timeout_s: float = _READY_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> None:
        self.deployment = deployment
        self._templates = templates
        self._ready_timeout_s = ready_timeout_s
        self._progress = progress or (lambda _: None)
        self._run: RunDirectory | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._ports: Ports | None = None
        self._door: MetricsDoor | None = None

    # ------------------------------------------------------------ life

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Lay out the models, start the server and wait until all models are ready.

        Raises:
            TandemError: ``environment`` (something is missing on this machine, a port is taken), ``invalid_request``
                (one of several servers, and no handle key), ``engine_failed`` (a model does not load; the text quotes
                the log) or ``deadline_exceeded``. Nothing is left running.
        """
        if self.deployment.is_spread:
            load_keys()  # other servers must have the same: none can be made up here
        if self.deployment.tls is not None:
            server_context(self.deployment.tls)
        runtime = find_runtime()
        templates = self._templates or templates_dir()
        self._ports = choose_ports(self.deployment.server)
        try:
            self._run = RunDirectory.create(home_dir(), self.deployment.name)
            self._run.deployment_file.write_bytes(to_json(self.deployment))
            models = lay_out(self.deployment, templates, self._run.models, self._run.deployment_file)
            check_shared_memory(len(models))
            self._spawn(runtime, self._open_door())
            self._await_ready(ServerLog(self.log_file), models)
            if self.deployment.has_gateway:
                _wake_orchestrator(self.http_url)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Block until the server ends by itself; returns its exit status (negative: the signal that killed it)."""
        return self._started(self._process).wait()

    def stop(self) -> None:
        """End server, stubs and engines, by force if they do not go; remove what they held. Safe to repeat."""
        if self._run is not None:
            if self._process is not None and self._process.poll() is None:
                drain(self._run.path, max(_DRAIN_TIMEOUT_S, self.deployment.limits.drain_s + _REAP_S))
            end_run(self._run.run_id, STOP_GRACE_S)
            self._run.close()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
        for child in (self._process, self._guard):
            if child is not None:
                _reap(child)
        self._process = self._guard = None
        if self._door is not None:
            self._door.close()
            self._door = None

    # ------------------------------------------------------------ where it is

    @property
    def ports(self) -> Ports:
        """The ports in use (free ones where 0 was asked for). Valid once started."""
        return self._started(self._ports)

    @property
    def http_url(self) -> str:
        """Base of Triton's HTTP API, e.g. ``http://127.0.0.1:8000``."""
        return f"http://{_client_host(http_host(self.deployment))}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Address for ``tritonclient.grpc``, e.g. ``127.0.0.1:8001``."""
        return f"{_client_host(self.deployment.server.host)}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Triton's Prometheus metrics."""
        scheme = "https" if self.deployment.tls else "http"
        return f"{scheme}://{_client_host(self.deployment.server.host)}:{self.ports.metrics}/metrics"

    @property
    def run_directory(self) -> Path:
        """Resolved deployment, models and logs of this run."""
        return self._started(self._run).path

    @property
    def log_file(self) -> Path:
        """What server and stubs print."""
        return self._started(self._run).logs / "triton.log"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._started(self._process).pid

    # ------------------------------------------------------------ start, step by step

    def _open_door(self) -> Ports:
        """The ports that Triton itself is to listen on: where there is TLS, its metrics lie behind a door."""
        if (tls := self.deployment.tls) is None:
            return self.ports
        hidden = free_port(LOOPBACK)
        self._door = MetricsDoor(tls, self.deployment.server.host, self.ports.metrics, hidden)
        return replace(self.ports, metrics=hidden)

    def _spawn(self, runtime: TritonRuntime, ports: Ports) -> None:
        """Start the guard, then the server in a session of its own, so that Ctrl-C reaches only this process."""
        run = self._started(self._run)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "tandem.triton.guard", run.run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        environment = server_environment(runtime, run, {**os.environ, **_handle_key()})
        word = management_word(load_keys(environment).signing)
        command = server_command(runtime, self.deployment, run, ports, word)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _await_ready(self, log: ServerLog, models: list[str]) -> None:
        """Poll readiness until it is there, the child is dead or the time is over."""
        process = self._started(self._process)
        deadline = time.monotonic() + self._ready_timeout_s
        said = ""
        while not _is_ready(self.http_url):
            if failed := log.failed_models():  # Triton itself would first wait for all other models
                raise TandemError("engine_failed", failed)
            if process.poll() is not None:
                raise TandemError("engine_failed", log.why_ended(process.returncode))
            if time.monotonic() > deadline:
                raise TandemError(
                    "deadline_exceeded",
                    f"the server was not ready after {self._ready_timeout_s:.0f} s; {log.progress(models)}. "
                    f"Its log: {self.log_file}",
                )
            if (line := log.progress(models)) != said:
                self._progress(line)
                said = line
            time.sleep(_POLL_S)

    def _started(self, value: _Part | None) -> _Part:
        if value is None:
            raise RuntimeError("the server has not been started")
        return value


def server_environment(
    runtime: TritonRuntime, run: RunDirectory, base: Mapping[str, str], python: Path | None = None
) -> dict[str, str]:
    """The server's environment, made of ours, ``base``; its stubs and engines inherit it. ``python`` replaces this one.

    The stub embeds Python: it finds this one through the PATH, and this one's packages through PYTHONPATH.
    """
    packages = [str(Path(__file__).resolve().parents[2]), sysconfig.get_paths()["purelib"]] if python is None else []
    python = python or Path(sys.executable)
    inherited = base.get("PYTHONPATH")
    packages += [inherited] if inherited else []
    return {
        **base,
        **runtime.environment(run.path / "lib", base.get("LD_LIBRARY_PATH")),
        RUN_VARIABLE: run.run_id,
        "PATH": f"{python.parent}:{base.get('PATH', os.defpath)}",
        "PYTHONPATH": ":".join(packages),
        "PYTHONUNBUFFERED": "1",
        "TANDEM_PYTHON": base.get("TANDEM_PYTHON") or str(python),
    }


def _handle_key() -> dict[str, str]:
    """Where the handle key is: as the environment says, else in this checkout's own file, which commands read too."""
    if os.environ.get(FILE_VARIABLE) or os.environ.get(KEY_VARIABLE):
        return {}
    try:
        return {FILE_VARIABLE: str(own_key_file(make=True))}
    except OSError:  # nobody may write there
        return {KEY_VARIABLE: secrets.token_hex(32)}


def _client_host(host: str) -> str:
    """Where a client on this machine reaches a server that listens on ``host``."""
    if host in ("0.0.0.0", "::", ""):
        return LOOPBACK
    return f"[{host}]" if ":" in host else host


def _wake_orchestrator(http_url: str) -> None:
    """A first request, so that the orchestrator meets its workers before a client waits for it.

    It cannot by itself: Triton 2.51 crashes when a model calls another one before its own ``initialize`` has returned.
    The request stops one that is not there, so an error is the answer.
    """
    request = urllib.request.Request(f"{http_url}/v2/models/llm/generate", b'{"stop": true}')
    with contextlib.suppress(OSError):
        urllib.request.urlopen(request, timeout=5.0).close()


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Take in a child that is at its end, so that no zombie stays."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_REAP_S)


def _is_ready(http_url: str) -> bool:
    """Whether the server answers and all its models are ready."""
    try:
        with urllib.request.urlopen(f"{http_url}/v2/health/ready", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
