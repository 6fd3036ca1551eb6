"""What a dry run prints is what would be started, by the very code that starts it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Deployment, Model, Worker, load_deployment, to_json
from tandem.engines import client
from tandem.parallel import supervisor
from tandem.triton import outline, server
from tandem.triton.run_directory import RunDirectory
from tandem.triton.runtime import TritonRuntime

ROOT = Path(__file__).parents[3]


def deployment(engine: str, ranks: int = 1) -> Deployment:
    fields: dict[str, Any] = {"engine": engine, "tensor_parallel_size": ranks}
    if engine == "sim":
        fields["profile"] = "instant"
    if engine == "tensorrt_llm":
        fields["devices"] = [f"cuda:{index}" for index in range(ranks)]
    workers = [Worker(name=f"{stage}_0", stage=stage, **fields) for stage in ("prefill", "decode")]  # type: ignore[arg-type]
    return Deployment(name="d", model=Model(path="/m"), worker=workers)


def here(home: Path) -> outline.Machine:
    """This machine, with a Triton server of somebody else's."""
    runtime = TritonRuntime(Path("/t/bin/tritonserver"), Path("/t/backends"), None, (), None, embedded=False)
    return outline.Machine("this machine", runtime, None, home, {"PATH": "/bin", "TANDEM_HANDLE_KEY": "a-secret"}, None)


def printed(words: list[str]) -> str:
    return "\n".join(f"    {line}" for line in outline.format_command(words))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been started."""
    commands: list[list[str]] = []

    def start(command: list[str], *_: Any, **__: Any) -> None:
        commands.append(command)
        raise OSError("not today")

    monkeypatch.setattr(subprocess, "Popen", start)
    return commands


@pytest.mark.parametrize("engine", ["torch", "sim", "tensorrt_llm"])
def test_the_servers_command_is_the_one_that_is_printed(engine: str, tmp_path: Path, started: list[list[str]]) -> None:
    found, machine = deployment(engine), here(tmp_path)
    run = RunDirectory(tmp_path / "run" / "d-PID", "RUN_ID")
    ports = outline.Ports(8000, 8001, 8002)
    text = outline.outline(found, machine)
    assert printed(outline.server_command(machine.runtime, found, run, ports, "(secret)")) in text
    assert "a-secret" not in text
    assert started == []


def test_a_workers_process_is_started_by_the_command_that_is_printed(tmp_path: Path, started: list[list[str]]) -> None:
    found = deployment("sim")
    file = tmp_path / "run/d-PID/deployment.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(to_json(found))
    process = client.EngineProcess(
        file, "prefill_0", tmp_path / "log", on_report=lambda _: None, on_exit=lambda _: None
    )
    with pytest.raises(OSError, match="not today"):
        process.start()
    (command,) = started
    text = outline.outline(found, here(tmp_path))
    endpoint, descriptor = command[command.index("--endpoint") + 1], command[command.index("--parent-fd") + 1]
    swap = {endpoint: outline.ENDPOINT, descriptor: "N"}
    assert printed([swap.get(word, word) for word in command]) in text


@pytest.mark.parametrize("engine", ["torch", "tensorrt_llm"])
def test_a_groups_ranks_are_started_by_the_command_that_is_printed(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, machine = deployment(engine, ranks=2), here(tmp_path)
    jobs: list[tuple[list[str], dict[str, str]]] = []

    def note(command: list[str], environment: dict[str, str], *_: Any, **__: Any) -> None:
        jobs.append((command, environment))

    monkeypatch.setattr(supervisor, "Job", note)
    base = server.server_environment(machine.runtime, RunDirectory(tmp_path, "RUN_ID"), machine.environment)
    monkeypatch.setattr(supervisor.os, "environ", base)
    supervisor.Supervisor(found, found.worker[0], outline.ENDPOINT, None, lambda _: None)
    command, environment = jobs[0]
    text = outline.outline(found, machine)
    assert printed(command) in text
    for name, value in environment.items():
        if name.startswith(("OMPI_", "MPI4PY")) and "tandem-" not in value:
            assert f"    {name}={value}" in text


def test_every_deployment_of_this_checkout_can_be_outlined() -> None:
    for path in sorted((ROOT / "deployments").rglob("*.toml")):
        found = load_deployment(path)
        text = outline.outline(found, outline.the_image())
        for worker in found.worker:
            assert f"Worker {worker.name} ({worker.engine}" in text
            for host in worker.hosts:
                assert f"  {host}: ranks " in text
