"""Cuts a converted model into one file for each rank of a group: ``build/shard.py MODEL --tensor-parallel-size 3``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from conversion.shards import write_shard
from conversion.terminal import console, fail
from tandem.errors import TandemError
from tandem.messages import Partition


def main(
    model: Annotated[Path, typer.Argument(help="A directory that build/convert.py wrote.")],
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="Ranks that share each layer.")] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option(min=1, help="Stages of consecutive layers.")] = 1,
) -> None:
    """Write MODEL/shards/tpN-ppM/rank-R.safetensors, so that a host needs only its ranks' files. Quick when there."""
    partition = Partition(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    try:
        for rank in track(range(partition.size), f"Cutting {model.name}", console=console, transient=True):
            path = write_shard(model, partition, rank)
    except TandemError as error:
        fail(error)
    console.print(f"Ready: {path.parent} ({partition.size} ranks)", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
