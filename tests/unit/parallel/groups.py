"""Engine groups under test, on this machine or on hosts made of namespaces, and their stage's end in a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tandem.deployment import Deployment, Model, Parallel, Worker, to_json
from tests.hosts import Host, Hosts

ROOT = Path(__file__).parents[3]
DEADLINE_S = 90.0
"""Only a broken group takes this long."""
HANG_TIMEOUT_S = 2.0
MARK = "TANDEM_TEST_GROUP"
"""Environment variable by which all processes of one test are found, whoever started them."""
T = TypeVar("T")


def wait_until(condition: Callable[[], T]) -> T:
    """Its first value that is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


class Group:
    """One engine group; ends with the block."""

    def __init__(
        self,
        directory: Path,
        mpi: str,
        size: int = 3,
        hosts: Hosts | None = None,
        indexes: Sequence[int] = (),
        loading: str = "",
        started_on: Host | None = None,
        **parallel: Any,
    ) -> None:
        """``hosts[indexes[0]]`` is where its stage runs, unless ``started_on`` another one; ``loading`` is a way in
        which it fails while it loads."""
        self._directory = directory
        self.log_file = directory / "engine.log"
        self._host: Host | None = None
        if hosts is not None:
            parallel = {"launch_agent": str(hosts.agent), **parallel}
            self._host = started_on or hosts[indexes[0]]
        self._addresses = hosts.addresses(*indexes) if hosts is not None else []
        worker = Worker(name="prefill_0", stage="prefill", tensor_parallel_size=size, hosts=self._addresses)
        settings = Parallel(**{"mpi": mpi, "hang_timeout_s": HANG_TIMEOUT_S, **parallel})
        deployment = Deployment(name="test", model=Model(path="/nowhere"), worker=[worker], parallel=settings)
        self._file = directory / "deployment.json"
        self._file.write_bytes(to_json(deployment))
        self._mark = uuid.uuid4().hex
        self._loading = loading
        self._said: list[dict[str, Any]] = []

    def __enter__(self) -> Group:
        path = os.pathsep.join([str(ROOT), str(ROOT / "python_backends")])
        environment = {**os.environ, "PYTHONPATH": path, MARK: self._mark, "TEST_LOADING": self._loading}
        environment["TMPDIR"] = str(self._directory)
        command = [sys.executable, "-m", "tests.unit.parallel.stage", str(self._file), str(self.log_file)]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
        start = self._host.popen if self._host is not None else _popen
        self._stage = start(command, **options)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_stage()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # ------------------------------------------------------------ what it says

    def ask(self, what: str) -> list[int]:
        """The answer to one request, a number of each rank."""
        self.tell(what)
        return wait_until(lambda: self._find_answer(what))

    def tell(self, what: str) -> None:
        """Make a request, without waiting for an answer."""
        assert self._stage.stdin is not None
        self._stage.stdin.write(f"{what}\n")
        self._stage.stdin.flush()

    def wait_ready(self) -> None:
        wait_until(lambda: any(report["type"] == "ready" for report in self._reports()) or self.exit_reason)
        assert self.exit_reason is None, self.log()

    def wait_exit(self) -> str:
        """How the group ended, and why."""
        return wait_until(lambda: self.exit_reason)

    @property
    def exit_reason(self) -> str | None:
        return next((said["exit"] for said in self._said if "exit" in said), None)

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    # ------------------------------------------------------------ its processes

    @property
    def supervisor(self) -> psutil.Process:
        """Of a group on this machine."""
        return psutil.Process(wait_until(lambda: next((said["pid"] for said in self._said if "pid" in said), None)))

    def ranks(self, host: Host | None = None) -> list[psutil.Process]:
        """Its ranks, on one host or on all."""
        inside = {process.pid for process in host.processes()} if host is not None else None
        ranks = [p for p in self.processes() if p.cmdline()[1:3] == ["-m", "tandem.parallel.rank"]]
        return [rank for rank in ranks if inside is None or rank.pid in inside]

    def processes(self) -> list[psutil.Process]:
        """All that were started for it and still run, wherever."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close_stage(self) -> int:
        """Have the stage stop the group; the stage's own exit status."""
        assert self._stage.stdin is not None
        self._stage.stdin.close()
        return self._stage.wait(DEADLINE_S)

    def kill_stage(self) -> None:
        for process in filter(is_stage, self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._stage.wait(DEADLINE_S)

    def is_gone(self) -> bool:
        """Whether nothing of it is left, its stage aside; waits for that."""
        return wait_until(lambda: all(map(is_stage, self.processes())))

    def _listen(self) -> None:
        assert self._stage.stdout is not None
        for line in self._stage.stdout:
            self._said.append(json.loads(line))

    def _reports(self) -> list[dict[str, Any]]:
        return [said["report"] for said in self._said if "report" in said]

    def _find_answer(self, what: str) -> list[int]:
        events = [event for report in self._reports() if report["type"] == "events" for event in report["events"]]
        tokens = [e["token_ids"] for e in events if e["type"] == "tokens" and e["request_id"] == what]
        return tokens[-1] if tokens else []


def _popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, text=True, **options)


def is_stage(process: psutil.Process) -> bool:
    """Whether it is the stage's end; so is what has ended meanwhile."""
    try:
        return "tests.unit.parallel.stage" in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
