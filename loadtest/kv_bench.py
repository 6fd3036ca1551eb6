"""How fast KV moves between engine processes, beside memcpy of the same bytes.

``python loadtest/kv_bench.py [--json FILE]``. A pull is what the decode stage waits for: read, question, answer. Where
a group pulls, the leader hears of all ranks' parts before it asks. Pulls and copies of one size take turns, so that
both see the same machine and the same caches; each figure is a median. KV that a prefill engine has written while it
computed is in memory; what was copied just before may still be in the caches, and that case is measured too. memcpy is
that of a process as it comes; engine processes copy past the caches (``tandem.kv.copying``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from kv_ranks import (
    Bytes,
    Group,
    Outcome,
    WorkerSpec,
    start_pair,
)
from rich.console import Console
from rich.table import Table

from tandem.kv.memory import HostMemory
from tandem.messages import KvFormat, KvHandle, Partition

MIB = 1 << 20
SIZES_MIB = (1, 4, 16, 64, 256)
RESHARD_SIZES_MIB = (16, 64)
SCRUB_BYTES = 256 * MIB
TIMEOUT_S = 60.0
WARM_UPS = 2

KV = KvFormat(
    fingerprint="bench",
    dtype="bfloat16",
    layout="head-major-v2",
    block_size=16,
    num_layers=30,
    num_kv_heads=3,
    slice_bytes=2 * 16 * 64 * 2,
)
"""SmolLM2-135M."""
BLOCK_BYTES = KV.num_layers * KV.num_kv_heads * KV.slice_bytes
"""360 KiB."""

RESHARDS = [
    (Partition(), Partition(tensor_parallel_size=3)),
    (Partition(tensor_parallel_size=3), Partition()),
    (Partition(pipeline_parallel_size=2), Partition(pipeline_parallel_size=4)),
    (Partition(pipeline_parallel_size=2), Partition(tensor_parallel_size=3)),
]


@dataclass(frozen=True)
class KvBenchRow:
    """One size: whole blocks, so a little more than the MiB it is named after."""

    mib: int
    bytes_moved: int
    blocks: int
    pull_ms: float
    pull_gb_per_s: float
    memcpy_gb_per_s: float
    ratio: float
    """Speed of the pull over that of memcpy."""
    cached: bool
    """Whether the bytes were in the processor's caches, as far as they fit; else they had been driven out before."""


@dataclass(frozen=True)
class ReshardRow:
    """One size between two groups."""

    prefill: str
    decode: str
    figures: KvBenchRow


@dataclass(frozen=True)
class KvBenchReport:
    """All sizes of one run."""

    block_bytes: int
    repetitions: int
    rows: list[KvBenchRow]
    """Between two workers of one rank each."""
    reshards: list[ReshardRow]
    """Between groups that split the model differently."""


def run_kv_bench(sizes_mib: Sequence[int] = SIZES_MIB, repetitions: int = 15) -> KvBenchReport:
    """Measure each size ``repetitions`` times."""
    rows = [
        row
        for cached in (False, True)
        for row in _run_pair(Partition(), Partition(), sizes_mib, repetitions, cached=cached)
    ]
    reshards = [
        ReshardRow(describe(prefill), describe(decode), row)
        for prefill, decode in RESHARDS
        for row in _run_pair(prefill, decode, RESHARD_SIZES_MIB, repetitions)
    ]
    return KvBenchReport(BLOCK_BYTES, repetitions, rows, reshards)


def describe(partition: Partition) -> str:
    """A group in words."""
    tensor, pipeline = partition.tensor_parallel_size, partition.pipeline_parallel_size
    if pipeline == 1:
        return f"tp {tensor}"
    return f"pp {pipeline}" if tensor == 1 else f"tp {tensor} pp {pipeline}"


def table(report: KvBenchReport) -> Table:
    """The report for a terminal."""
    blocks = f"{report.block_bytes / 1024:.0f} KiB blocks, median of {report.repetitions}"
    columns = "from", "to", "size", "bytes are in", "pull ms", "pull GB/s", "memcpy GB/s", "ratio"
    result = Table(*columns, title=f"KV transfer: {blocks}")
    for column in result.columns[2:]:
        column.justify = "right"
    for prefill, decode, row in [
        *(("1 rank", "1 rank", row) for row in report.rows),
        *((one.prefill, one.decode, one.figures) for one in report.reshards),
    ]:
        figures = f"{row.pull_ms:.2f}", f"{row.pull_gb_per_s:.1f}", f"{row.memcpy_gb_per_s:.1f}", f"{row.ratio:.2f}"
        result.add_row(prefill, decode, f"{row.mib} MiB", "cache" if row.cached else "memory", *figures)
    return result


def _specs(prefill: Partition, decode: Partition, num_blocks: int) -> tuple[WorkerSpec, WorkerSpec]:
    limits = {"blocks": num_blocks, "lease_s": TIMEOUT_S, "timeout_s": TIMEOUT_S}
    return (
        WorkerSpec("prefill", "prefill", KV, prefill, **limits),  # type: ignore[arg-type]
        WorkerSpec("decode", "decode", KV, decode, **limits),  # type: ignore[arg-type]
    )


def _run_pair(
    prefill_split: Partition,
    decode_split: Partition,
    sizes_mib: Sequence[int],
    repetitions: int,
    *,
    cached: bool = False,
) -> list[KvBenchRow]:
    """Copies are made in this process, whose memcpy is as it comes; pulls in processes set up as engines are."""
    prefill, decode = start_pair(*_specs(prefill_split, decode_split, _blocks(max(sizes_mib))))
    try:
        _fill(prefill)
        target = HostMemory(_blocks(max(sizes_mib)) * BLOCK_BYTES).array

        def pull(blocks: int) -> Outcome:
            decode.all("erase", blocks)
            target[: blocks * BLOCK_BYTES] = 0
            handle = _grant(prefill, blocks)
            if not cached:
                scrub()
            decode.begin_pull("bench", handle)
            result = decode.result()
            decode.leader.call("free", list(range(blocks)))
            return result

        def arrived(blocks: int) -> bool:
            seeds = list(range(blocks))
            return not any(decode.all("wrong_blocks", seeds, seeds))

        scrub = _make_scrub()
        return [_measure(mib, repetitions, pull, arrived, target, scrub, cached) for mib in sizes_mib]
    finally:
        prefill.kill()
        decode.kill()


def _fill(prefill: Group) -> list[int]:
    """Fill all blocks, each with the content of its number. Leases begin at block 0 and use no others meanwhile."""
    ids = list(range(prefill.spec.blocks))
    prefill.all("fill", ids, ids)
    return ids


def _grant(prefill: Group, blocks: int) -> KvHandle:
    handle: KvHandle = prefill.leader.call("grant", "bench", prefill.leader.call("allocate_blocks", blocks))
    return handle


def _measure(
    mib: int,
    repetitions: int,
    pull: Callable[[int], Outcome],
    arrived: Callable[[int], bool],
    target: Bytes,
    scrub: Callable[[], None],
    cached: bool,
) -> KvBenchRow:
    """Pulls, and copies of as many bytes into ``target``, in turns."""
    blocks = _blocks(mib)
    size = blocks * BLOCK_BYTES
    source = HostMemory(size).array
    source[:] = 2
    pulls, copies = [], []
    for repetition in range(repetitions + WARM_UPS):
        result = pull(blocks)
        if result.code is not None or result.bytes_moved != size or not arrived(blocks):
            raise RuntimeError(f"{mib} MiB: {result}")
        target[:size] = 0
        if not cached:
            scrub()
        began = time.perf_counter()
        np.copyto(target[:size], source)
        copied = time.perf_counter() - began
        if repetition >= WARM_UPS:
            pulls.append(result.seconds)
            copies.append(copied)
    pull_s, copy_s = statistics.median(pulls), statistics.median(copies)
    return KvBenchRow(
        mib=mib,
        bytes_moved=size,
        blocks=blocks,
        pull_ms=1e3 * pull_s,
        pull_gb_per_s=size / pull_s / 1e9,
        memcpy_gb_per_s=size / copy_s / 1e9,
        ratio=copy_s / pull_s,
        cached=cached,
    )


def _make_scrub() -> Callable[[], None]:
    """What drives everything else out of the processor's caches."""
    other = np.zeros(SCRUB_BYTES, dtype=np.uint8)

    def scrub() -> None:
        np.add(other, 1, out=other)

    return scrub


def _blocks(mib: int) -> int:
    return -(-mib * MIB // BLOCK_BYTES)


def main(
    json: Annotated[Path | None, typer.Option(help="write the report here as JSON")] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 15,
) -> None:
    """Measure and print."""
    report = run_kv_bench(repetitions=repetitions)
    Console().print(table(report))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))


if __name__ == "__main__":
    typer.run(main)
