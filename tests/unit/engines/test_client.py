"""The engine process and its keeper's end, with real processes that work, crash, hang and lose their parent."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tandem.deployment import Deployment, Model, Worker, to_json
from tandem.engines.client import EngineProcess, find_python
from tandem.engines.server import directory_of
from tandem.messages import (
    Cancel,
    EngineError,
    EngineReport,
    Events,
    Finished,
    Load,
    Loading,
    Pair,
    Prefill,
    Ready,
    Sampling,
    Start,
    Stopping,
    Tokens,
    WorkerInfo,
)

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
"""Only a broken process takes this long."""


class Engine:
    """An engine process under test, and what it said."""

    def __init__(
        self,
        directory: Path,
        engine: str = "create",
        worker: str = "prefill_0",
        silence_s: float = 15.0,
        start_s: float = DEADLINE_S,
    ) -> None:
        self.directory = directory
        self.reports: queue.Queue[EngineReport] = queue.Queue()
        self.exits: queue.Queue[str] = queue.Queue()
        self.process = EngineProcess(
            write_deployment(directory),
            worker,
            directory / "logs" / "engine.log",
            on_report=self.reports.put,
            on_exit=self.exits.put,
            silence_s=silence_s,
            start_s=start_s,
            engine=engine if engine.count(":") or engine == "warp" else f"tests.unit.engines.echo_engine:{engine}",
        )

    def next(self, wanted: Callable[[EngineReport], bool]) -> EngineReport:
        """The next report of that kind; others are dropped."""
        end = time.monotonic() + DEADLINE_S
        while True:
            report = self.reports.get(timeout=max(0.0, end - time.monotonic()))
            if wanted(report):
                return report

    def ready(self) -> WorkerInfo:
        report = self.next(lambda r: isinstance(r, Ready))
        assert isinstance(report, Ready)
        return report.worker

    def events(self) -> Events:
        report = self.next(lambda r: isinstance(r, Events) and bool(r.events))
        assert isinstance(report, Events)
        return report

    def error(self) -> str:
        report = self.next(lambda r: isinstance(r, EngineError))
        assert isinstance(report, EngineError)
        return report.message

    def exit(self) -> str:
        return self.exits.get(timeout=DEADLINE_S)

    @property
    def system_process(self) -> psutil.Process:
        assert self.process.pid is not None
        return psutil.Process(self.process.pid)


def write_deployment(directory: Path) -> Path:
    file = directory / "deployment.json"
    worker = Worker(name="prefill_0", stage="prefill")
    file.write_bytes(to_json(Deployment(name="test", model=Model(path="/nowhere/model"), worker=[worker])))
    return file


def work(request_id: str, tokens: list[int]) -> Prefill:
    return Prefill(request_id=request_id, token_ids=tokens, sampling=Sampling(), stopping=Stopping(max_tokens=1))


def sockets_of(process: psutil.Process) -> Path:
    """The directory of an engine process's sockets."""
    command = process.cmdline()
    return directory_of(command[command.index("--endpoint") + 1])


def is_gone(pid: int) -> bool:
    """Whether no such process runs any more; waits for it."""
    try:
        psutil.Process(pid).wait(DEADLINE_S)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


Launch = Callable[..., Engine]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Starts engine processes, and ends them after the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TANDEM_PYTHON", sys.executable)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engines: list[Engine] = []

    def start(engine: str = "create", **options: object) -> Engine:
        engines.append(Engine(tmp_path, engine, **options))  # type: ignore[arg-type]
        engines[-1].process.start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.process.kill()


def test_works_and_stops_in_good_order(launch: Launch, tmp_path: Path) -> None:
    engine = launch()
    assert engine.next(lambda r: isinstance(r, Loading) and r.what == "weights")
    info = engine.ready()
    assert (info.worker_id, info.engine) == ("prefill_0", "echo")
    engine.process.send(Start(work=[work("a", [1, 2]), work("b", [3])]))
    first, second = engine.events(), engine.events()
    assert first.events == [Tokens(request_id="a", index=0, token_ids=[1, 2]), Finished(request_id="a", reason="stop")]
    assert second.load == Load(steps=2)
    engine.process.send(Cancel(request_ids=["c"]))
    assert engine.events().events == [Finished(request_id="c", reason="cancelled")]
    pid = engine.process.pid
    engine.process.stop(DEADLINE_S)
    assert engine.exit().startswith("exit status 0; its last words:")
    assert "stops in good order" in (tmp_path / "logs" / "engine.log").read_text()
    assert pid is not None
    assert is_gone(pid)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("tandem-")] == []


def test_nothing_to_say_is_said_all_the_same(launch: Launch) -> None:
    """Signs of life carry the last load."""
    engine = launch()
    engine.ready()
    engine.process.send(Start(work=[work("a", [1])]))
    assert engine.events()
    for _ in range(3):
        idle = engine.next(lambda r: isinstance(r, Events))
        assert idle == Events(events=[], load=Load(steps=1))


def test_order_is_kept_under_a_flood(launch: Launch) -> None:
    engine = launch()
    engine.ready()
    for i in range(5000):
        engine.process.send(Start(work=[work(str(i), [i])]))
    answers = [engine.events() for _ in range(5000)]
    assert [a.load.steps for a in answers] == list(range(1, 5001))
    assert [e.request_id for a in answers for e in a.events if isinstance(e, Tokens)] == [str(i) for i in range(5000)]


def test_epoch_grows_from_start_to_start(launch: Launch) -> None:
    first, second = launch().ready().epoch, launch().ready().epoch
    assert 0 < first < second < 2**63


def test_peer_that_does_not_fit_leaves_the_engine_alive(launch: Launch, tmp_path: Path) -> None:
    engine = launch()
    info = engine.ready()
    engine.process.send(Pair(peer=info))
    engine.process.send(Start(work=[work("a", [1])]))
    assert engine.events()
    assert "prefill_0 does not fit" in (tmp_path / "logs" / "engine.log").read_text()


def test_killed_engine_is_noticed(launch: Launch) -> None:
    engine = launch()
    engine.ready()
    engine.system_process.kill()
    assert engine.exit().startswith("killed by SIGKILL; its last words:")
    engine.process.send(Cancel(request_ids=["a"]))  # no error: it is gone
    engine.process.stop(1.0)
    assert engine.exits.empty()


def test_crash_tells_its_last_words(launch: Launch) -> None:
    reason = launch("create_crashing").exit()
    assert reason.startswith("killed by SIGABRT")
    assert "about to crash" in reason


def test_silent_engine_is_killed(launch: Launch) -> None:
    engine = launch(silence_s=2.0)
    engine.ready()
    child = engine.system_process
    child.suspend()
    assert engine.exit().startswith("no sign of life for 2 s, killed")
    assert is_gone(child.pid)


def test_a_process_may_be_silent_for_longer_until_it_is_ready(launch: Launch) -> None:
    engine = launch(silence_s=0.01)  # it does not even find its libraries in that time
    engine.ready()
    assert engine.exit().startswith("no sign of life for 0.01 s, killed")


def test_a_process_that_does_not_come_up_is_killed(launch: Launch) -> None:
    engine = launch(silence_s=0.01, start_s=1.0)
    engine.system_process.suspend()
    assert engine.exit().startswith("no sign of life for 1 s, killed")
    assert engine.reports.empty()


def test_slow_loading_is_a_sign_of_life(launch: Launch) -> None:
    """Loading takes longer than the silence that is allowed meanwhile."""
    engine = launch("create_slowly", silence_s=3.0, start_s=5.0)
    assert engine.ready().engine == "echo"
    assert engine.exits.empty()


def test_stop_ends_an_engine_that_will_not_and_its_children(launch: Launch) -> None:
    engine = launch("create_stubborn")
    said = engine.events().events[0]
    assert isinstance(said, Tokens)
    pid = engine.process.pid
    engine.process.stop(1.0)
    assert engine.exit().startswith("killed by SIGKILL")
    assert pid is not None
    assert is_gone(pid)
    assert is_gone(said.token_ids[0])


def test_stop_while_loading_does_not_wait_for_it(launch: Launch) -> None:
    engine = launch("create_slowly")
    engine.next(lambda r: isinstance(r, Loading) and r.what == "weights")
    engine.process.stop(1.0)
    assert engine.exit().startswith("killed by SIGTERM")


def test_killed_engine_takes_its_children_along(launch: Launch) -> None:
    engine = launch("create_stubborn")
    said = engine.events().events[0]
    assert isinstance(said, Tokens)
    engine.system_process.kill()
    assert engine.exit().startswith("killed by SIGKILL")
    assert is_gone(said.token_ids[0])


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("create_never", "model.path: /nowhere/model has no config.json; run build/convert.py"),
        ("create_broken", "ZeroDivisionError: a defect"),
        ("warp", "worker.engine: 'warp' is not an engine; give one of sim, tensorrt_llm, torch, or module:function"),
        ("no.such.module:create", "No module named 'no'"),
        ("create_nothing", "has no function 'create_nothing'"),
    ],
)
def test_engine_that_cannot_be_built_says_why(launch: Launch, engine: str, message: str) -> None:
    process = launch(engine)
    assert message in process.error()
    assert process.exit().startswith("exit status 1")


def test_unknown_worker_is_named(launch: Launch) -> None:
    assert launch(worker="decode_7").error() == "worker 'decode_7' is not in the deployment; it has prefill_0"


@pytest.mark.parametrize(
    ("request_id", "message"),
    [("raise", "RuntimeError: the engine broke"), ("thread", "thread step died: ZeroDivisionError")],
)
def test_engine_that_breaks_at_work_says_why(launch: Launch, request_id: str, message: str) -> None:
    engine = launch()
    engine.ready()
    engine.process.send(Start(work=[work(request_id, [1])]))
    assert message in engine.error()
    assert engine.exit().startswith("exit status 1")


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tandem.engines.client import EngineProcess
from tandem.messages import Events
def report(r):
    if isinstance(r, Events) and r.events:
        print(process.pid, r.events[0].token_ids[0], flush=True)
process = EngineProcess(Path(sys.argv[2]), "prefill_0", Path(sys.argv[3]), on_report=report, on_exit=print,
                        engine="tests.unit.engines.echo_engine:create_stubborn")
process.start()
time.sleep(600)
"""


def test_engine_and_its_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    """The engine refuses to stop, so this is the hard way out."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), str(write_deployment(tmp_path)), str(tmp_path / "engine.log")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(psutil.pid_exists, pids))
        directory = sockets_of(psutil.Process(pids[0]))
        assert directory.exists()
    finally:
        parent.kill()
        parent.communicate()
    assert all(map(is_gone, pids))
    assert not directory.exists()


def test_start_without_a_python_leaves_nothing(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PYTHON", "/nowhere/python")
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        launch()
    assert [p for p in tmp_path.iterdir() if p.name.startswith("tandem-")] == []


def test_long_temp_directory_is_not_used_for_sockets(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert launch().ready()


def test_embedded_interpreter_falls_back_to_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_PYTHON", raising=False)
    assert find_python() == sys.executable
    monkeypatch.setattr(sys, "executable", "/opt/tritonserver/backends/python/triton_python_backend_stub")
    assert find_python() == f"{sys.prefix}/bin/python3"
    monkeypatch.setenv("TANDEM_PYTHON", "/opt/venv/bin/python")
    assert find_python() == "/opt/venv/bin/python"


def test_callback_that_raises_does_not_stop_the_reports(launch: Launch) -> None:
    engine = launch()
    engine.ready()
    raised = threading.Event()
    take = engine.reports.put

    def put(report: EngineReport) -> None:
        if not raised.is_set():
            raised.set()
            raise ValueError("not taken")
        take(report)

    engine.process._on_report = put
    assert raised.wait(DEADLINE_S)
    assert engine.next(lambda r: isinstance(r, Events))
