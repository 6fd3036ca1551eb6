"""How KV is cut anew between engine groups that split a model differently: which bytes of a block come from whom.

A rank's block holds [KV heads][layers] slices, of its heads and its layers. So what two ranks have in common of one
head is one run of bytes on either side, and heads follow one another without a gap where both hold the same layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem.messages import KvFormat, Partition
from tandem.parallel.partition import kv_heads_of, layers_of


@dataclass(frozen=True)
class Run:
    """Bytes that move in one piece; both offsets count from the start of a block."""

    source_offset: int
    target_offset: int
    length: int


@dataclass(frozen=True)
class Part:
    """What one source rank gives to one target rank, in ascending order of the target."""

    source_rank: int
    runs: tuple[Run, ...]


def block_bytes_of(partition: Partition, rank: int, kv: KvFormat) -> int:
    """Bytes of a block in the memory of ``rank``."""
    heads, layers = _holdings(partition, rank, kv)
    return len(heads) * len(layers) * kv.slice_bytes


def plan_parts(source: Partition, target: Partition, target_rank: int, kv: KvFormat) -> list[Part]:
    """Where every byte of a block of ``target_rank`` comes from; source ranks ascend, runs are as long as can be.

    Where source ranks hold copies of a head, its takers are spread evenly over the copies, so that in equal groups each
    rank reads from the rank of its own number.
    """
    heads, layers = _holdings(target, target_rank, kv)
    runs_of: dict[int, list[Run]] = {}
    for head in heads:
        for stage in range(source.pipeline_parallel_size):
            common = _overlap(layers, _stage_layers(source, stage, kv))
            if not common:
                continue
            rank = _choose_copy(source, stage, target, target_rank, head, kv)
            run = Run(
                source_offset=_offset(source, rank, head, common.start, kv),
                target_offset=_offset(target, target_rank, head, common.start, kv),
                length=len(common) * kv.slice_bytes,
            )
            _append(runs_of.setdefault(rank, []), run)
    return [Part(rank, tuple(runs_of[rank])) for rank in sorted(runs_of)]


def _holdings(partition: Partition, rank: int, kv: KvFormat) -> tuple[range, range]:
    """KV heads and layers of a rank."""
    return kv_heads_of(partition, rank, kv.num_kv_heads), layers_of(partition, rank, kv.num_layers)


def _stage_layers(partition: Partition, stage: int, kv: KvFormat) -> range:
    return layers_of(partition, stage * partition.tensor_parallel_size, kv.num_layers)


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _choose_copy(source: Partition, stage: int, target: Partition, target_rank: int, head: int, kv: KvFormat) -> int:
    """The source rank of ``stage`` from which ``target_rank`` takes ``head``: the n-th taker's share of the copies."""
    first = stage * source.tensor_parallel_size
    ranks = range(first, first + source.tensor_parallel_size)
    copies = [rank for rank in ranks if head in kv_heads_of(source, rank, kv.num_kv_heads)]
    wanted = _stage_layers(source, stage, kv)
    takers = [
        rank
        for rank in range(target.size)
        if head in kv_heads_of(target, rank, kv.num_kv_heads)
        and _overlap(layers_of(target, rank, kv.num_layers), wanted)
    ]
    return copies[takers.index(target_rank) * len(copies) // len(takers)]


def _offset(partition: Partition, rank: int, head: int, layer: int, kv: KvFormat) -> int:
    """Where the slice of (head, layer) starts in a block of ``rank``."""
    heads, layers = _holdings(partition, rank, kv)
    return (heads.index(head) * len(layers) + layers.index(layer)) * kv.slice_bytes


def _append(runs: list[Run], run: Run) -> None:
    """Add a run, as the end of the last one where it follows that on both sides."""
    if runs:
        last = runs[-1]
        if (last.source_offset + last.length, last.target_offset + last.length) == (
            run.source_offset,
            run.target_offset,
        ):
            runs[-1] = Run(last.source_offset, last.target_offset, last.length + run.length)
            return
    runs.append(run)
