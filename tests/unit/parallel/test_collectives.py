"""Sums, hand-overs, what the leader collects: on real ranks of both MPIs, and of the device kind on Gloo, not NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem.deployment import Parallel, Worker
from tandem.parallel.collectives import Alone
from tandem.parallel.launch import build_call, find_launcher
from tandem.parallel.output import Demultiplexer
from tests.unit.parallel.collectives import ROWS

ROOT = Path(__file__).parents[3]


def run(mpi: str, kind: str, tp: int, pp: int, directory: Path) -> list[dict[str, Any]]:
    """What the ranks say, in their order."""
    parallel = Parallel(mpi=mpi)  # type: ignore[arg-type]
    worker = Worker(name="w", stage="decode", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    launcher = find_launcher(parallel)
    program = [sys.executable, "-m", "tests.unit.parallel.collectives", kind, str(tp), str(pp)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_backends")])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    command, environment = build_call(launcher, parallel, worker, program, environment, directory)
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False, cwd=directory)
    assert done.returncode == 0, done.stderr.decode()
    lines = Demultiplexer(launcher.marker).feed(done.stdout)
    return sorted((json.loads(text) for rank, text in lines if rank is not None), key=lambda said: said["rank"])


@pytest.mark.parametrize(
    ("mpi", "kind", "tp", "pp"),
    [("mpich", "mpi", 2, 2), ("openmpi", "mpi", 1, 2), ("mpich", "gloo", 2, 2)],
)
def test_ranks_compute_together(mpi: str, kind: str, tp: int, pp: int, tmp_path: Path) -> None:
    said = run(mpi, kind, tp, pp, tmp_path)
    assert [one["rank"] for one in said] == list(range(tp * pp))
    for rank, one in enumerate(said):
        stage = rank // tp
        factor = sum(other + 1 for other in range(stage * tp, (stage + 1) * tp))
        for dtype in (torch.float32, torch.bfloat16):
            expected = (torch.arange(ROWS * 4, dtype=torch.float32).view(ROWS, 4).T * factor).tolist()
            assert one[str(dtype)] == expected
            received = [[float(rank - tp)] * 2] * ROWS if stage else None
            assert one.get(f"received {dtype}") == received
        last = range(tp * (pp - 1), tp * pp)
        assert one["collected"] == ([] if rank else [[other] * (other + 1) for other in last])
        assert one["took time"]


def test_a_group_of_one_asks_nobody() -> None:
    alone, x = Alone(), torch.ones(2)
    assert alone.sum(x) is x
    assert alone.receive(x) is x
    assert alone.seconds == 0
