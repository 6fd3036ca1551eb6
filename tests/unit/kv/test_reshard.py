"""Cutting KV anew, against a model that labels every slice of every rank with what it means."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.reshard import Part, Run, block_bytes_of, plan_parts
from tandem.messages import KvFormat, Partition
from tandem.parallel.partition import kv_heads_of, layers_of, pipeline_rank

SLICE = 8
Slice = tuple[int, int]
"""(KV head, layer)."""


def kv_of(num_layers: int, num_kv_heads: int) -> KvFormat:
    return KvFormat(
        fingerprint="f",
        dtype="d",
        layout="l",
        block_size=4,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        slice_bytes=SLICE,
    )


def group(tensor: int, pipeline: int = 1) -> Partition:
    return Partition(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)


def block(partition: Partition, rank: int, kv: KvFormat) -> list[Slice]:
    """What the slices of a rank's block mean, in order."""
    heads, layers = kv_heads_of(partition, rank, kv.num_kv_heads), layers_of(partition, rank, kv.num_layers)
    return [(head, layer) for head in heads for layer in layers]


@st.composite
def cases(draw: st.DrawFn) -> tuple[KvFormat, Partition, Partition]:
    """Any two groups, also ones whose sizes do not divide the heads or layers."""
    kv = kv_of(draw(st.integers(1, 7)), draw(st.integers(1, 6)))
    pipelines = st.integers(1, min(4, kv.num_layers))
    source, target = (group(draw(st.integers(1, 9)), draw(pipelines)) for _ in range(2))
    return kv, source, target


def copied(kv: KvFormat, source: Partition, target: Partition, rank: int, parts: list[Part]) -> list[list[Slice]]:
    """Every slice that is written to each place of the target's block."""
    written: list[list[Slice]] = [[] for _ in block(target, rank, kv)]
    for part in parts:
        theirs = block(source, part.source_rank, kv)
        for run in part.runs:
            assert run.length > 0
            assert run.source_offset % SLICE == run.target_offset % SLICE == run.length % SLICE == 0
            for place in range(run.length // SLICE):
                written[run.target_offset // SLICE + place].append(theirs[run.source_offset // SLICE + place])
    return written


@given(case=cases())
def test_every_byte_comes_once_and_means_the_same(case: tuple[KvFormat, Partition, Partition]) -> None:
    kv, source, target = case
    for rank in range(target.size):
        parts = plan_parts(source, target, rank, kv)
        assert copied(kv, source, target, rank, parts) == [[one] for one in block(target, rank, kv)]
        assert sum(run.length for part in parts for run in part.runs) == block_bytes_of(target, rank, kv)
        assert [part.source_rank for part in parts] == sorted({part.source_rank for part in parts})


@given(case=cases())
def test_runs_ascend_and_none_follows_another_on_both_sides(case: tuple[KvFormat, Partition, Partition]) -> None:
    kv, source, target = case
    for rank in range(target.size):
        for part in plan_parts(source, target, rank, kv):
            for one, two in zip(part.runs, part.runs[1:], strict=False):
                assert one.target_offset + one.length <= two.target_offset
                ends = one.source_offset + one.length, one.target_offset + one.length
                assert ends != (two.source_offset, two.target_offset)


@given(case=cases())
def test_in_equal_groups_each_rank_reads_its_whole_block_from_its_own_number(
    case: tuple[KvFormat, Partition, Partition],
) -> None:
    kv, partition, _ = case
    for rank in range(partition.size):
        whole = Run(0, 0, block_bytes_of(partition, rank, kv))
        assert plan_parts(partition, partition, rank, kv) == [Part(rank, (whole,))]


@given(case=cases())
def test_copies_of_a_head_are_read_evenly(case: tuple[KvFormat, Partition, Partition]) -> None:
    kv, source, target = case
    readers: Counter[tuple[int, int]] = Counter()
    for rank in range(target.size):
        taken = set()
        for part in plan_parts(source, target, rank, kv):
            theirs = block(source, part.source_rank, kv)
            for run in part.runs:
                start = run.source_offset // SLICE
                heads = {head for head, _ in theirs[start : start + run.length // SLICE]}
                taken |= {(part.source_rank, head) for head in heads}
        readers.update(taken)
    for stage in range(source.pipeline_parallel_size):
        for head in range(kv.num_kv_heads):
            copies = [
                rank
                for rank in range(source.size)
                if pipeline_rank(source, rank) == stage and head in kv_heads_of(source, rank, kv.num_kv_heads)
            ]
            counts = [readers[copy, head] for copy in copies]
            assert max(counts) - min(counts) <= 1


@given(case=cases())
def test_what_one_group_takes_the_other_could_take_back(case: tuple[KvFormat, Partition, Partition]) -> None:
    """Without copies, the pieces of a hand-over are the same in both directions."""
    kv, source, target = case
    if max(source.tensor_parallel_size, target.tensor_parallel_size) > kv.num_kv_heads:
        return
    forth = pieces(kv, source, target)
    back = pieces(kv, target, source)
    assert sorted(forth) == sorted((there, here, to, start, length) for here, there, start, to, length in back)


def pieces(kv: KvFormat, source: Partition, target: Partition) -> list[tuple[int, int, int, int, int]]:
    """(source rank, target rank, source offset, target offset, length) of all runs."""
    return [
        (part.source_rank, rank, run.source_offset, run.target_offset, run.length)
        for rank in range(target.size)
        for part in plan_parts(source, target, rank, kv)
        for run in part.runs
    ]


@pytest.mark.parametrize(
    ("source", "target", "rank", "parts"),
    [
        (group(1), group(3), 1, [Part(0, (Run(240, 0, 240),))]),
        (group(3), group(1), 0, [Part(i, (Run(0, 240 * i, 240),)) for i in range(3)]),
        (group(1, 2), group(1), 0, [Part(0, tuple(Run(120 * i, 240 * i, 120) for i in range(3))),
                                    Part(1, tuple(Run(120 * i, 240 * i + 120, 120) for i in range(3)))]),
        (group(1), group(1, 2), 1, [Part(0, tuple(Run(240 * i + 120, 120 * i, 120) for i in range(3)))]),
        (group(6), group(3), 2, [Part(4, (Run(0, 0, 240),))]),
        (group(3), group(6), 5, [Part(2, (Run(0, 0, 240),))]),
        (group(6), group(6), 5, [Part(5, (Run(0, 0, 240),))]),
        (group(3), group(3, 2), 5, [Part(2, (Run(120, 0, 120),))]),
    ],
)  # fmt: skip
def test_known_cases(source: Partition, target: Partition, rank: int, parts: list[Part]) -> None:
    """30 layers, 3 KV heads."""
    assert plan_parts(source, target, rank, kv_of(30, 3)) == parts
