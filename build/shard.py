"""Cuts a converted model into one file for each rank of a group: ``build/shard.py MODEL --tensor-parallel-size 3``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conversion.terminal import fail, shard_showing
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
        shard_showing(model, partition)
    except TandemError as error:
        fail(error)


if __name__ == "__main__":
    typer.run(main)
