"""One rank of ``test_collectives``: says as JSON what it got."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from tandem.messages import Partition
from tandem.parallel.collectives import Collectives, DeviceCollectives, MpiCollectives
from tandem.parallel.group import RankGroup

ROWS = 3


def main(kind: str, tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
    partition = Partition(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    group = RankGroup.join(partition)
    ranks: Collectives = MpiCollectives(group) if kind == "mpi" else DeviceCollectives(group, kind, "127.0.0.1")
    found: dict[str, object] = {"rank": group.rank}
    for dtype in (torch.float32, torch.bfloat16):
        mine = torch.arange(ROWS * 4, dtype=dtype).view(ROWS, 4).T * (group.rank + 1)  # not contiguous
        found[str(dtype)] = ranks.sum(mine.contiguous() if kind != "mpi" else mine).tolist()
        x = torch.full((ROWS, 2), -1.0, dtype=dtype)
        stage = group.rank // tensor_parallel_size
        if stage > 0:
            found[f"received {dtype}"] = ranks.receive(x).tolist()
        if stage < pipeline_parallel_size - 1:
            ranks.send_on(torch.full((ROWS, 2), float(group.rank), dtype=dtype))
    is_last = group.rank >= group.size - tensor_parallel_size
    part = np.full(group.rank + 1 if is_last else 0, group.rank, np.uint8)
    sizes = [group.size - tensor_parallel_size + place + 1 for place in range(tensor_parallel_size)]
    found["collected"] = [piece.tolist() for piece in ranks.collect(part, sizes)]
    found["took time"] = ranks.seconds > 0
    print(json.dumps(found), flush=True)
    group.gather(None)  # all have what they wait for
    if kind != "mpi":
        torch.distributed.destroy_process_group()  # engines end without it, at once; this process ends in Python's way


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
