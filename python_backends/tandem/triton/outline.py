"""What ``tandem serve`` would start, and where: said by the code that starts it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.deployment import Deployment, Worker
from tandem.engines.client import outline_command
from tandem.keys import KEY_VARIABLE
from tandem.parallel import llmapi
from tandem.parallel.group_call import GroupCall, plan_group
from tandem.parallel.launch import Launcher
from tandem.parallel.rank import DEPLOYMENT
from tandem.triton.command import server_command
from tandem.triton.home import home_dir, templates_dir
from tandem.triton.layout import lay_out
from tandem.triton.ports import Ports
from tandem.triton.run_directory import RunDirectory
from tandem.triton.runtime import TritonRuntime, find_runtime
from tandem.triton.server import server_environment

IMAGE_ROOT = Path("/opt/tandem")
"""Of build/docker/tensorrt_llm.Dockerfile, like what follows."""
IMAGE_PYTHON = Path("/usr/bin/python3")
IMAGE_TRITON = Path("/opt/tritonserver")
ENDPOINT = "ipc:///tmp/tandem-XXXXXXXX/engine"
SECRETS = {KEY_VARIABLE: "(secret)", DEPLOYMENT: "(the deployment)"}
"""What does not belong on a screen, and what would fill it."""
_INDENT = "    "


@dataclass(frozen=True)
class Machine:
    """Where the deployment would be served."""

    title: str
    runtime: TritonRuntime
    python: Path | None
    """None: this one."""
    home: Path
    environment: Mapping[str, str]
    """What everything inherits."""
    launcher: Launcher | None
    """None: as this machine has it."""


def this_machine() -> Machine:
    """The one we are on.

    Raises:
        TandemError: ``environment``: it has no Triton server.
    """
    return Machine("this machine", find_runtime(), None, home_dir(), os.environ, None)


def the_image() -> Machine:
    """A container of build/docker/tensorrt_llm.Dockerfile, wherever it runs."""
    runtime = TritonRuntime(
        binary=IMAGE_TRITON / "bin" / "tritonserver",
        backends=IMAGE_TRITON / "backends",
        caches=IMAGE_TRITON / "caches",
        libraries=(IMAGE_TRITON / "lib",),
        libpython=None,
        embedded=False,
    )
    environment = {
        "PATH": "$PATH",
        "LD_LIBRARY_PATH": "$LD_LIBRARY_PATH",
        "PYTHONPATH": str(IMAGE_ROOT / "python_backends"),
    }
    launcher = Launcher("openmpi", Path("mpirun"), Path("libmpi.so.40"), major=4, elsewhere=True)
    return Machine("the image", runtime, IMAGE_PYTHON, IMAGE_ROOT / ".tandem", environment, launcher)


def outline(deployment: Deployment, machine: Machine) -> str:
    """The whole text.

    Raises:
        TandemError: what ``tandem serve`` itself would refuse.
    """
    run = RunDirectory(machine.home / "run" / f"{deployment.name}-PID", "RUN_ID")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        models = lay_out(deployment, templates_dir(), place / "models", run.deployment_file)
        inherited = {KEY_VARIABLE: "", **machine.environment}
        base = server_environment(machine.runtime, RunDirectory(place, "RUN_ID"), inherited, machine.python)
        environment = {name: value.replace(directory, str(run.path)) for name, value in base.items()}
    lines = [f"{deployment.name}, served from {machine.title}: nothing has been started.", ""]
    lines += _server(deployment, machine, run, models, environment)
    for worker in deployment.worker:
        lines += ["", *_worker(deployment, worker, machine, run, environment)]
    return "\n".join(lines) + "\n"


def _server(
    deployment: Deployment, machine: Machine, run: RunDirectory, models: list[str], environment: dict[str, str]
) -> Iterator[str]:
    server = deployment.server
    ports = Ports(server.http_port, server.grpc_port, server.metrics_port)
    yield f"Triton, with the models {', '.join(models)} in {run.models}"
    yield from _indent(_format_environment(environment, machine.environment))
    yield from _indent(format_command(server_command(machine.runtime, deployment, run, ports, "(secret)")))


def _worker(
    deployment: Deployment, worker: Worker, machine: Machine, run: RunDirectory, environment: dict[str, str]
) -> Iterator[str]:
    ranks = f", {worker.group_size} ranks" if worker.group_size > 1 else ""
    yield f"Worker {worker.name} ({worker.engine}, {worker.stage}{ranks}), which Triton's model of that name starts"
    python = environment["TANDEM_PYTHON"]
    yield from _indent(format_command(outline_command(run.deployment_file, worker, python, ENDPOINT)))
    if worker.group_size == 1:
        yield f"{_INDENT}on {worker.devices[0]}"
        return
    call = _plan(deployment, worker, machine, environment, python)
    yield "  It starts all ranks, in one MPI world"
    yield from _indent(_format_environment(call.environment, environment))
    yield from _indent(format_command(call.command))
    for path, text in call.files.items():
        yield f"  with {path}: {', '.join(text.split())}"
    if call.runs:
        yield "  Each rank becomes, on its host"
        yield from _indent(format_command(call.runs))
        yield f"  of which rank 0 alone runs what follows {call.runs[0]}, beside TensorRT-LLM's own node"
    yield from _places(worker)


def _plan(
    deployment: Deployment, worker: Worker, machine: Machine, environment: dict[str, str], python: str
) -> GroupCall:
    """The supervisor's own call."""
    environment = {**environment, "TANDEM_GROUP": "GROUP_ID"}
    directory = Path(ENDPOINT.removeprefix("ipc://")).parent
    return plan_group(deployment, worker, ENDPOINT, None, environment, directory, machine.launcher, python)


def _places(worker: Worker) -> Iterator[str]:
    """Which ranks run where, and on what."""
    hosts = worker.hosts or ["this host"]
    each = worker.group_size // len(hosts)
    for index, host in enumerate(hosts):
        ranks = range(index * each, (index + 1) * each)
        devices = [worker.device_of(rank) for rank in ranks]
        yield f"  {host}: ranks {ranks[0]} to {ranks[-1]} on {', '.join(dict.fromkeys(devices))}"
        visible = llmapi.visible_devices(worker, ranks[0]) if worker.engine == llmapi.ENGINE else None
        if visible is not None:
            yield f"{_INDENT}CUDA_VISIBLE_DEVICES={visible}"


def _format_environment(environment: Mapping[str, str], inherited: Mapping[str, str]) -> Iterator[str]:
    """What is set beyond what was there already."""
    for name, value in sorted(environment.items()):
        if inherited.get(name) != value:
            yield f"{name}={SECRETS.get(name) or (value if '$' in value else shlex.quote(value))}"


def format_command(words: list[str]) -> Iterator[str]:
    """A command that can be copied, an option a line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and not _is_module_option(lines[-1], word):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    texts = [" ".join(line) for line in lines if line]
    for index, text in enumerate(texts):
        yield ("  " if index else "") + text + (" \\" if index < len(texts) - 1 else "")


def _is_module_option(line: list[str], word: str) -> bool:
    """``python -m module`` stays together."""
    return word == "-m" and len(line) == 1


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"{_INDENT}{line}" for line in lines)
