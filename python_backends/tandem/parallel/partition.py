"""Which rank of an engine group holds what. Ranks count through a pipeline stage first: rank = stage * tp + place.

Pure functions over plain numbers: the shards of a model, the KV cache of a rank and the cutting of KV between unlike
groups all follow from them.
"""

from __future__ import annotations

from tandem.errors import TandemError
from tandem.messages import Partition


def tensor_rank(partition: Partition, rank: int) -> int:
    """The place of ``rank`` within its pipeline stage."""
    return rank % partition.tensor_parallel_size


def pipeline_rank(partition: Partition, rank: int) -> int:
    """The pipeline stage of ``rank``."""
    return rank // partition.tensor_parallel_size


def layers_of(partition: Partition, rank: int, num_layers: int) -> range:
    """The layers that ``rank`` computes; where they do not divide, earlier stages have one more."""
    return _share(num_layers, partition.pipeline_parallel_size, pipeline_rank(partition, rank))


def kv_heads_of(partition: Partition, rank: int, num_kv_heads: int) -> range:
    """The KV heads that ``rank`` holds: its share, or one head that several ranks hold a copy of."""
    size, place = partition.tensor_parallel_size, tensor_rank(partition, rank)
    if size <= num_kv_heads:
        return _share(num_kv_heads, size, place)
    head = place * num_kv_heads // size
    return range(head, head + 1)


def vocab_of(partition: Partition, rank: int, vocab_size: int) -> range:
    """The token ids whose embeddings and logits ``rank`` holds; shares differ by one id at most."""
    return _share(vocab_size, partition.tensor_parallel_size, tensor_rank(partition, rank))


def check_partition(
    partition: Partition, *, num_layers: int, num_heads: int, num_kv_heads: int, intermediate_size: int
) -> None:
    """Whether a model of these sizes can be split like this.

    Raises:
        TandemError: ``invalid_request``, with the sizes that can be had.
    """

    def divides(size: int) -> bool:
        whole_heads = num_kv_heads % size == 0 or size % num_kv_heads == 0
        return num_heads % size == 0 and intermediate_size % size == 0 and whole_heads

    if not divides(partition.tensor_parallel_size):
        sizes = ", ".join(str(size) for size in range(1, num_heads + 1) if divides(size))
        raise TandemError(
            "invalid_request",
            f"worker.tensor_parallel_size: {partition.tensor_parallel_size} does not divide this model "
            f"({num_heads} heads, {num_kv_heads} KV heads, intermediate size {intermediate_size}); give one of {sizes}",
        )
    if partition.pipeline_parallel_size > num_layers:
        raise TandemError(
            "invalid_request",
            f"worker.pipeline_parallel_size: {partition.pipeline_parallel_size} is more than the model's {num_layers} "
            f"layers; give 1 to {num_layers}",
        )


def _share(total: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` consecutive shares of ``range(total)``; the first ones have the surplus."""
    size, surplus = divmod(total, parts)
    start = index * size + min(index, surplus)
    return range(start, start + size + (index < surplus))
