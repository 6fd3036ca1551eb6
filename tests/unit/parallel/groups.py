"""Engine groups under test, on hosts made of namespaces, and their stage's end in a process. On hosts, not on the
machine itself, so that all that is left there was left by the group."""

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
from typing import Any, Literal, TypeVar

import psutil

from tandem.deployment import Deployment, Model, Parallel, Worker, to_json
from tests.hosts import Host, Hosts

ROOT = Path(__file__).parents[3]
DEADLINE_S = 90.0
"""Only a broken group takes this long."""
HANG_TIMEOUT_S = 2.0
MARK = "TANDEM_TEST_GROUP"
"""Environment variable by which all processes of one test are found, whoever started them."""
LATE = """import os, time
parent = os.getppid()
if "1" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
    while os.getppid() == parent:
        time.sleep(0.02)
"""
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
        hosts: Hosts,
        indexes: Sequence[int] = (0,),
        size: int = 2,
        loading: str = "",
        late: bool = False,
        started_on: Host | None = None,
        engine: str = "tests.unit.parallel.engine:create",
        kind: Literal["torch", "tensorrt_llm"] = "torch",
        environment: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        """``size`` ranks on the hosts ``indexes``; on the first of them its stage runs, unless ``started_on`` another
        one. ``loading`` is a way in which it fails while it loads; of a ``late`` group rank 1 does not come as far as
        MPI. ``engine`` is what leads it, started like one of ``kind``; ``fields`` are more of the worker's."""
        self._directory = directory
        self.log_file = directory / "engine.log"
        self._hosts = [hosts[index] for index in indexes]
        self._per_host = size // len(indexes)
        self._start = (started_on or self._hosts[0]).popen
        addresses = hosts.addresses(*indexes) if len(indexes) > 1 else []
        worker = Worker(
            name="prefill_0", stage="prefill", tensor_parallel_size=size, hosts=addresses, **fields, engine=kind
        )
        settings = Parallel(
            mpi=mpi,  # type: ignore[arg-type]
            hang_timeout_s=HANG_TIMEOUT_S,
            launch_agent=str(hosts.agent),
            subnet=hosts.subnet if addresses else None,
        )
        deployment = Deployment(name="test", model=Model(path="/nowhere"), worker=[worker], parallel=settings)
        self._file = directory / "deployment.json"
        self._file.write_bytes(to_json(deployment))
        self._engine = engine
        self._more = environment or {}
        self._mark = uuid.uuid4().hex
        self._loading = loading
        self._path = [str(ROOT), str(ROOT / "python_backends")]
        if late:
            (directory / "sitecustomize.py").write_text(LATE)
            self._path.insert(0, str(directory))
        self._said: list[dict[str, Any]] = []

    def __enter__(self) -> Group:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(self._path),
            MARK: self._mark,
            "TMPDIR": str(self._directory),
            **self._more,
        }
        environment.update(TANDEM_TEST_LOADING=self._loading, TANDEM_TEST_NUMBER="7", OMP_NUM_THREADS="1")
        command = [sys.executable, "-m", "tests.unit.parallel.stage", str(self._file), str(self.log_file)]
        command += [self._engine]
        self._stage = self._start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
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

    def wait_running(self) -> None:
        """Until its supervisor has heard all ranks say that they have loaded."""
        wait_until(lambda: "all ranks are running" in self.log())

    @property
    def exit_reason(self) -> str | None:
        return next((said["exit"] for said in self._said if "exit" in said), None)

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    # ------------------------------------------------------------ its processes

    def find_supervisor(self) -> psutil.Process:
        """Its supervisor."""
        return self.find_processes("tandem.parallel.supervisor")[0]

    def find_processes(self, module: str) -> list[psutil.Process]:
        """All that run a module on its first host, parents before children."""
        found = [process for process in self._hosts[0].processes() if arguments(process)[1:3] == ["-m", module]]
        return sorted(found, key=lambda process: len(process.parents()))

    def find_rank(self, rank: int) -> tuple[psutil.Process, str]:
        """One rank, and how it is called: ``rank 1 on 10.0.0.2 (pid 123)``."""
        pid = self.ask("pids")[rank]
        host = self._hosts[rank // self._per_host]
        name = f"rank {rank} on {host.address} (pid {pid})" if len(self._hosts) > 1 else f"rank {rank} (pid {pid})"
        (process,) = [process for process in host.processes() if count_inside(process) == pid]
        return process, name

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

    def leaves_nothing(self) -> bool:
        """Whether nothing of it is left on any host, its stage aside: waits for that."""
        wait_until(lambda: all(is_stage(process) for host in self._hosts for process in host.processes()))
        assert [host.shared_memory() for host in self._hosts] == [[]] * len(self._hosts)
        return True

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


def is_stage(process: psutil.Process) -> bool:
    """Whether it is the stage's end; so is what has ended meanwhile."""
    return runs(process, "tests.unit.parallel.stage")


def runs(process: psutil.Process, module: str) -> bool:
    """Whether it runs a module; what has ended runs any."""
    try:
        return module in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def arguments(process: psutil.Process) -> list[str]:
    """Its command line, empty when it has ended."""
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def count_inside(process: psutil.Process) -> int | None:
    """Its id as its host counts; None: it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    return int(status.split("NSpid:")[1].split("\n")[0].split()[-1])
