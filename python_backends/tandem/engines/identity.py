"""The name of a worker among all that it can meet, those of the same deployment entry on other hosts too."""

from __future__ import annotations

import os
import socket

from tandem.deployment import Worker
from tandem.triton.processes import RUN_VARIABLE


def make_worker_id(worker: Worker) -> str:
    """``decode_0@host3-5f2a91c0``: the entry's name, the host's, and the run of the Triton server, in which names are
    unique. Outside of a server (tests, benchmarks) the entry's name alone."""
    run_id = os.environ.get(RUN_VARIABLE)
    return f"{worker.name}@{socket.gethostname()}-{run_id}" if run_id else worker.name
