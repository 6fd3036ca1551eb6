"""One rank of a TensorRT-LLM engine, as MPI starts it: sets its host's environment right, and becomes
``trtllm-llmapi-launch``.

``python -m tandem.parallel.llmapi_rank --worker NAME --endpoint ipc://PATH``. Devices and interfaces have other names
on each host, so each rank looks for its own; what the environment says already stays. What would make a container's
ranks hang, or crawl, without a word is said once a host, on stderr.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path

from tandem.deployment import Deployment, Worker
from tandem.errors import TandemError
from tandem.parallel import warden
from tandem.parallel.llmapi import PROGRAM, build_rank, parse_arguments, visible_devices
from tandem.parallel.network import LOOPBACK, find_interface
from tandem.parallel.shared_memory import find_place

RANK_VARIABLES = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
INFINIBAND = Path("/sys/class/infiniband")
VERBS = Path("/dev/infiniband")
SHARED_MEMORY_BYTES = 1 << 30
"""NCCL and MPI fill /dev/shm; Docker's own default is 64 MiB, and who runs out of it is killed by SIGBUS."""


def main(arguments: list[str] | None = None) -> None:
    """Become the rank. Returns only with an error."""
    args, deployment = parse_arguments("tandem.parallel.llmapi_rank", arguments)
    try:
        worker = deployment.find_worker(args.worker)
        rank = int(next(os.environ[name] for name in RANK_VARIABLES if name in os.environ))
        for name, value in host_environment(deployment, worker, rank, INFINIBAND).items():
            os.environ.setdefault(name, value)
        if rank % (worker.group_size // max(1, len(worker.hosts))) == 0:
            for problem in find_problems(worker):
                print(f"tandem: {problem}", file=sys.stderr, flush=True)
        warden.post(find_place())
        command = build_rank(worker, args.endpoint, args.engine)
        os.execvp(command[0], command)
    except TandemError as error:
        sys.exit(error.message)
    except StopIteration:
        sys.exit(f"none of {', '.join(RANK_VARIABLES)} is set: this is to be started by mpirun or srun")
    except OSError as error:
        sys.exit(f"{PROGRAM}: {error.strerror}; it comes with TensorRT-LLM, and has to be on the PATH of every host")


def host_environment(deployment: Deployment, worker: Worker, rank: int, infiniband: Path) -> dict[str, str]:
    """What the ranks on this host are to have in their environment, unless it is there already.

    Raises:
        TandemError: ``invalid_request``: this host is not in the deployment's network.
    """
    environment: dict[str, str] = {}
    if (devices := visible_devices(worker, rank)) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    interface = _interface(deployment)
    if interface is not None:
        environment["NCCL_SOCKET_IFNAME"] = environment["GLOO_SOCKET_IFNAME"] = interface
        if not _has_devices(infiniband):  # with RDMA the interface would be the slow way: UCX is to see the devices
            environment["UCX_NET_DEVICES"] = interface
    return environment


def _interface(deployment: Deployment) -> str | None:
    """Of ``parallel.subnet``; loopback where all is on one host, which a container without a network has, too."""
    if (subnet := deployment.parallel.subnet) is not None:
        return find_interface(subnet)
    return None if any(len(worker.hosts) > 1 for worker in deployment.worker) else LOOPBACK


def find_problems(worker: Worker, infiniband: Path = INFINIBAND, verbs: Path = VERBS) -> list[str]:
    """What of this host, or its container, will make MPI, NCCL or UCX fail or be slow."""
    problems = []
    if (room := shutil.disk_usage("/dev/shm").total) < SHARED_MEMORY_BYTES:
        problems.append(f"/dev/shm has {room >> 20} MiB; start the container with --shm-size=1g or more, or --ipc=host")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and _has_devices(infiniband):
        problems.append(f"only {locked >> 10} KiB may be locked: RDMA cannot register memory; --ulimit memlock=-1")
    if _has_devices(infiniband) and len(worker.hosts) > 1 and not verbs.is_dir():
        problems.append(f"{infiniband} has devices, but there is no {verbs}: KV goes over TCP; --device={verbs}")
    return problems


def _has_devices(infiniband: Path) -> bool:
    return infiniband.is_dir() and any(infiniband.iterdir())


if __name__ == "__main__":
    main()
