"""What ``tandem doctor`` looks at: one function per thing, all called with the deployment to be served."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tandem.cli.terminal import size
from tandem.deployment import Deployment, Worker
from tandem.engines.tensorrt_llm.identity import read_shape
from tandem.engines.torch.config import read_config
from tandem.engines.torch.sharding import Shard
from tandem.errors import TandemError
from tandem.keys import load_keys
from tandem.parallel.launch import find_agent, find_launcher
from tandem.parallel.network import check_first_host
from tandem.triton.command import check_shared_memory
from tandem.triton.install import check_machine
from tandem.triton.libpython import find_libpython
from tandem.triton.ports import choose_ports
from tandem.triton.runtime import brings_server, check_python, find_runtime

_IMPORT_TIMEOUT_S = 120
_HOST_TIMEOUT_S = 15
_CONNECT_TIMEOUT_S = 3
_EXTRA_MODELS = 4
"""Model instances beside the workers: llm, preprocess."""


@dataclass(frozen=True)
class Finding:
    """``good``; ``note``: worth knowing, no obstacle; ``bad``: nothing will run, and the text says what to do."""

    state: Literal["good", "note", "bad"]
    text: str


Check = Callable[[Deployment], Finding]


def _python(_: Deployment) -> Finding:
    found = f"Python {platform.python_version()} at {sys.executable}"
    if not brings_server():
        check_python()
    return Finding("good", found)


def _libpython(_: Deployment) -> Finding:
    return Finding("good", str(find_libpython()))


def _c_library(_: Deployment) -> Finding:
    if not brings_server():
        check_machine()
    return Finding("good", " ".join([*platform.libc_ver(), platform.machine()]))


def _triton(_: Deployment) -> Finding:
    runtime = find_runtime()
    return Finding("good", f"{'embedded' if runtime.embedded else 'installed'}: {runtime.binary}")


def _numpy(_: Deployment) -> Finding:
    version = importlib.metadata.version("numpy")
    if not brings_server() and not version.startswith("1.26."):
        return Finding("bad", f"numpy {version}: the embedded Triton server needs 1.26; pip install 'numpy<2'")
    return Finding("good", f"numpy {version}")


def _model(deployment: Deployment) -> Finding:
    path = Path(deployment.model.path)
    weights = list(path.glob("*.safetensors"))
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    needs_weights = any(worker.engine == "torch" for worker in deployment.workers_here)
    missing += [] if weights or not needs_weights else ["*.safetensors"]
    if missing:
        how = "python build/demo_model.py (the demo model) or python build/convert.py SOURCE OUT"
        return Finding("bad", f"{path} lacks {', '.join(missing)}; make it with {how}")
    for worker in deployment.workers_here:
        if worker.engine == "tensorrt_llm":
            read_shape(path)
        else:
            Shard(read_config(path), worker.partition, 0)  # raises where the model cannot be split like this
    return Finding("good", f"{path} ({size(sum(file.stat().st_size for file in weights))})")


def _tensorrt_llm(deployment: Deployment) -> Finding:
    workers = [worker for worker in deployment.worker if worker.engine == "tensorrt_llm"]
    if not workers:
        return Finding("good", "no worker needs it")
    built = any(worker.tensorrt_llm and worker.tensorrt_llm.engine_dir for worker in workers)
    problem = _try(f"from tandem.engines.tensorrt_llm.library import load_library; load_library(built={built})")
    if problem is not None:
        return Finding("bad", problem)
    return Finding("good", f"it has all that {len(workers)} workers need")


def _nixl(_: Deployment) -> Finding:
    reinstall = f"{sys.executable} -m pip install -e ."
    try:
        version = importlib.metadata.version("nixl-cu13")
    except importlib.metadata.PackageNotFoundError:
        return Finding("bad", f"nixl-cu13, which moves the KV cache, is not installed; {reinstall}")
    code = "from nixl_cu13._api import nixl_agent, nixl_agent_config; nixl_agent('doctor', nixl_agent_config())"
    problem = _try(code)
    if problem is not None:
        return Finding("bad", f"nixl-cu13 {version} does not start: {problem}; {reinstall}")
    return Finding("good", f"nixl-cu13 {version}")


def _mpi(deployment: Deployment) -> Finding:
    groups = [worker for worker in deployment.workers_here if worker.group_size > 1]
    try:
        launcher = find_launcher(deployment.parallel)
    except TandemError as error:
        return Finding("bad" if groups else "note", error.message)
    found = f"{launcher.implementation}: {launcher.mpiexec}"
    code = f"import os; os.environ['MPI4PY_LIBMPI'] = {str(launcher.library)!r}; from mpi4py import MPI"
    if groups and (problem := _try(code)) is not None:
        return Finding("bad", f"{found}; mpi4py does not start with {launcher.library}: {problem}")
    return Finding("good", found if groups else f"{found}; no worker has several ranks")


def _hosts(deployment: Deployment) -> Finding:
    spread = [worker for worker in deployment.workers_here if len(worker.hosts) > 1]
    if not spread:
        return Finding("good", "every rank runs on this machine")
    agent = find_agent(deployment.parallel)
    for worker in spread:
        check_first_host(worker)
    others = sorted({host for worker in spread for host in worker.hosts[1:]})
    for host in others:
        command = [agent, host, "test", "-x", sys.executable]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_HOST_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Finding("bad", f"{host}: no answer to {' '.join(command)} within {_HOST_TIMEOUT_S} s")
        if done.returncode == 1:
            return Finding("bad", f"{host} has no {sys.executable}; put the same installation at the same path there")
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            return Finding("bad", f"{host} cannot be reached: {said} (tried: {' '.join(command)})")
    return Finding("good", f"{', '.join(others)} can be reached with {agent}")


def _others(deployment: Deployment) -> Finding:
    if not deployment.is_spread:
        return Finding("good", "this server is all there is")
    load_keys()
    if not deployment.has_gateway:
        return Finding("good", "the handle key is there")
    lost = []
    for worker in deployment.worker:
        for address in worker.addresses:
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
            except OSError as error:
                lost.append(f"{worker.name} at {address}: {error}")
    if lost:
        return Finding("note", f"not there (yet): {'; '.join(lost)}")
    return Finding("good", "all addresses of workers answer")


def _devices(deployment: Deployment) -> Finding:
    wanted = sorted({device for worker in deployment.workers_here for device in worker.devices if device != "cpu"})
    count = "import torch, sys; sys.exit(None if torch.cuda.is_available() else 'no CUDA device')"
    problem = _try(count)
    if problem is None:
        return Finding("good", "PyTorch sees a CUDA device")
    if wanted:
        return Finding(
            "bad", f"the deployment asks for {', '.join(wanted)}, PyTorch says: {problem}; set devices = ['cpu']"
        )
    return Finding("note", f"no CUDA ({problem}); the deployment runs on the CPU")


def _cores(deployment: Deployment) -> Finding:
    cores = len(os.sched_getaffinity(0))
    threads = sum(deployment.threads_of(worker, rank) for worker, rank in _ranks_here(deployment))
    if threads > cores:
        return Finding("note", f"{cores} cores for {threads} engine threads: engines will wait for each other")
    return Finding("good", f"{cores} cores for {threads} engine threads")


def _memory(deployment: Deployment) -> Finding:
    free = psutil.virtual_memory().available
    weights = sum(file.stat().st_size for file in Path(deployment.model.path).glob("*.safetensors"))
    on_cpu = [worker for worker, rank in _ranks_here(deployment) if worker.device_of(rank) == "cpu"]
    need = sum(worker.kv_bytes + weights // worker.group_size for worker in on_cpu)
    text = f"{size(free)} free, {size(need)} needed for weights and KV cache of {len(on_cpu)} ranks"
    if need > free:
        return Finding("bad", f"{text}; lower kv_memory in [[worker]], or run fewer workers")
    return Finding("good", text)


def _shared_memory(deployment: Deployment) -> Finding:
    check_shared_memory(len(deployment.workers_here) + _EXTRA_MODELS * deployment.has_gateway)
    return Finding("good", f"{size(shutil.disk_usage('/dev/shm').free)} free in /dev/shm")


def _ports(deployment: Deployment) -> Finding:
    ports = choose_ports(deployment.server)
    return Finding("good", f"{ports.http}, {ports.grpc}, {ports.metrics} are free on {deployment.server.host}")


def _ranks_here(deployment: Deployment) -> list[tuple[Worker, int]]:
    """Every rank that runs on this machine, with its worker."""
    ranks = [(worker, rank) for worker in deployment.workers_here for rank in range(worker.group_size)]
    return [(worker, rank) for worker, rank in ranks if worker.host_of(rank) is None]


def _try(code: str) -> str | None:
    """Run Python code in a process of its own; None when it works, otherwise the last line of its error."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_IMPORT_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _safely(check: Check) -> Check:
    """What a check raises is a finding too."""

    def run(deployment: Deployment) -> Finding:
        try:
            return check(deployment)
        except TandemError as error:
            return Finding("bad", error.message)

    return run


CHECKS: dict[str, Check] = {
    "Python": _safely(_python),
    "libpython": _safely(_libpython),
    "C library": _safely(_c_library),
    "Triton": _safely(_triton),
    "numpy": _safely(_numpy),
    "model": _safely(_model),
    "TensorRT-LLM": _safely(_tensorrt_llm),
    "NIXL": _safely(_nixl),
    "MPI": _safely(_mpi),
    "hosts": _safely(_hosts),
    "other servers": _safely(_others),
    "GPU": _safely(_devices),
    "cores": _safely(_cores),
    "memory": _safely(_memory),
    "shared memory": _safely(_shared_memory),
    "ports": _safely(_ports),
}
"""In the order in which they matter."""
