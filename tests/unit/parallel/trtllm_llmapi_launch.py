"""A stand-in for ``trtllm-llmapi-launch``: what it does with ranks, environment and command, and a node of MPI's that
waits. Like some versions of the real one it goes on when the command has ended.

Each node notes what it sees in a file of ``TANDEM_TEST_NODES``, once all nodes have met.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

HIDDEN = ("OMPI_", "PMIX_", "PMI_", "SLURM_", "MPI_", "UCX_", "I_MPI_", "HYDRA_", "KMP_", "MPICH_", "MV2_", "CRAY_")
SEEN = ("CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "UCX_TLS", "NCCL_DEBUG", "TRTLLM_SETTING", "SLURM_PROCID")


def main() -> None:
    rank = int(next(os.environ[n] for n in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK") if n in os.environ))
    os.environ["TLLM_SPAWN_PROXY_PROCESS"] = "1"
    os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"] = "tcp://127.0.0.1:10012"
    os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"] = secrets.token_hex(32)
    if rank == 0:
        visible = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        subprocess.Popen(" ".join(sys.argv[1:]).split(), env=visible)
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    note = {name: os.environ.get(name) for name in SEEN}
    note |= {"size": MPI.COMM_WORLD.size, "host": os.uname().nodename, "pid": os.getpid()}
    path = Path(os.environ["TANDEM_TEST_NODES"]) / str(MPI.COMM_WORLD.rank)
    path.with_suffix(".new").write_text(json.dumps(note))
    path.with_suffix(".new").rename(path)
    while True:
        time.sleep(0.1)


main()
