"""The MPI world of a TensorRT-LLM engine: one for each worker, with the process that manages it beside rank 0.

Every rank is ``trtllm-llmapi-launch``, which on rank 0 runs our process in the background, and on all ranks, 0 too, a
node of TensorRT-LLM's that waits for work; ``tensorrt_llm.LLM`` in our process finds rank 0's by the variables
TLLM_SPAWN_PROXY_PROCESS*, which the script sets. Traits of it that shape what is here (read in
tensorrt_llm/llmapi/trtllm-llmapi-launch of NVIDIA/TensorRT-LLM at 020c89e64e49 and cbe4c0aed8b5):

* Its rank is SLURM_PROCID, before that of Open MPI: within an allocation of Slurm's all ranks of an mpirun would be 0.
* It learns the world's size from Slurm or Open MPI alone. With MPICH it is 1.
* It splits the command at white space, however it was quoted.
* Our process gets no variable that begins with OMPI_, PMIX_, PMI_, SLURM_, MPI_, UCX_, KMP_ …; the nodes get all.
* Some versions go on for ever when our process has ended, so the supervisor ends the job.
"""

from __future__ import annotations

import argparse
import base64
import os
import platform
import re
import sys
from pathlib import Path

import msgspec

from tandem.deployment import Deployment, Parallel, Worker, to_json
from tandem.errors import TandemError
from tandem.parallel.launch import Launcher, find_launcher
from tandem.parallel.rank import DEPLOYMENT

ENGINE = "tensorrt_llm"
PROGRAM = "trtllm-llmapi-launch"
FORWARDED = re.compile(
    r"(TANDEM|TRTLLM|TLLM|UCX|NCCL|NIXL|NVSHMEM|CUDA|FI|GLOO|HF|TRANSFORMERS|TORCH|PYTHON|MPI4PY)[A-Z0-9_]*"
    r"|OMP_NUM_THREADS|LD_LIBRARY_PATH|PATH"
)
"""Variables that mpirun is told to take to other hosts; OMPI_MCA_* it takes by itself, srun takes all."""
_OUTER_JOB = re.compile(r"(SLURM|PMI|PMI2|PMIX|OMPI_COMM_WORLD|OMPI_UNIVERSE|HYDRA)_[A-Z0-9_]*")
"""Variables by which a process takes itself for a rank of another job."""
SRUN_MARKER = re.compile(rb"^ *(\d+): ")
"""What ``srun --label`` puts before each line."""


def build_program(
    deployment: Deployment, worker: Worker, endpoint: str, engine: str | None, python: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command of every rank, and what has to be in its environment.

    Raises:
        TandemError: ``invalid_request``: a path has a space in it.
    """
    command = [python or sys.executable, "-m", "tandem.parallel.llmapi_rank", *_arguments(worker, endpoint, engine)]
    if spaced := next((word for word in command if re.search(r"\s", word)), None):
        raise TandemError(
            "invalid_request", f"{spaced!r}: {PROGRAM} splits its command at white space; use another path"
        )
    return command, {DEPLOYMENT: base64.b64encode(to_json(deployment)).decode()}


def build_rank(worker: Worker, endpoint: str, engine: str | None, python: str | None = None) -> list[str]:
    """What a rank becomes on its host; all but the first word is what rank 0 then has run beside it."""
    leads = [python or sys.executable, "-m", "tandem.parallel.llmapi_leader", *_arguments(worker, endpoint, engine)]
    return [PROGRAM, *leads]


def _arguments(worker: Worker, endpoint: str, engine: str | None) -> list[str]:
    arguments = ["--worker", worker.name, "--endpoint", endpoint]
    return arguments if engine is None else [*arguments, "--engine", engine]


def parse_arguments(module: str, arguments: list[str] | None) -> tuple[argparse.Namespace, Deployment]:
    """The arguments of a rank and of its leader, and the deployment, which comes in the environment."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--worker", required=True, help="name of the worker in the deployment")
    parser.add_argument("--endpoint", required=True, help="ipc:// address of the stage, which is rank 0's")
    parser.add_argument("--engine", help="engine name or module:function, in place of the deployment's")
    deployment = msgspec.json.decode(base64.b64decode(os.environ[DEPLOYMENT]), type=Deployment)
    return parser.parse_args(arguments), deployment


def find_openmpi(parallel: Parallel) -> Launcher:
    """The mpiexec to start with, which has to be Open MPI's.

    Raises:
        TandemError: ``invalid_request``: there is none.
    """
    launcher = find_launcher(parallel)
    if launcher.implementation != "openmpi" and parallel.mpi == "auto" and parallel.mpiexec is None:
        launcher = find_launcher(msgspec.structs.replace(parallel, mpi="openmpi"))
    if launcher.implementation != "openmpi":
        raise TandemError(
            "invalid_request",
            f"parallel.mpi: {launcher.implementation!r}: TensorRT-LLM needs Open MPI, or launcher = 'srun'; "
            f"{PROGRAM} does not learn the number of ranks from MPICH",
        )
    return launcher


def without_outer_job(environment: dict[str, str]) -> dict[str, str]:
    """An environment from which no rank can take itself for one of another job's."""
    return {name: value for name, value in environment.items() if not _OUTER_JOB.fullmatch(name)}


def build_srun(
    worker: Worker, program: list[str], environment: dict[str, str], host_file: Path
) -> tuple[list[str], dict[str, str], dict[Path, str]]:
    """A step of the allocation that this process is in; Slurm starts MPI by PMIx. The third are files that it needs: a
    list of hosts in another order than Slurm's own it takes from a file alone, a line for each rank."""
    hosts = worker.hosts or [environment.get("SLURMD_NODENAME") or platform.node()]
    each = worker.group_size // len(hosts)
    environment = {**environment, "SLURM_HOSTFILE": str(host_file)}
    command = ["srun", "--mpi=pmix", f"--ntasks={worker.group_size}", "--distribution=arbitrary"]
    command += ["--overlap", "--kill-on-bad-exit=1", "--label", "--unbuffered", "--export=ALL", *program]
    return command, environment, {host_file: "".join(f"{host}\n" * each for host in hosts)}


def visible_devices(worker: Worker, rank: int) -> str | None:
    """CUDA_VISIBLE_DEVICES on the host of ``rank``: the devices of all the worker's ranks there, since TensorRT-LLM
    picks one by the rank's number; None: as it is."""
    each = worker.group_size // max(1, len(worker.hosts))
    first = rank // each * each
    numbers = [worker.device_of(index).partition(":")[2] for index in range(first, first + each)]
    return ",".join(numbers) if all(numbers) and len(set(numbers)) == each else None
