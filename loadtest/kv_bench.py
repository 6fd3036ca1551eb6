"""How fast KV moves between two engine processes, beside memcpy of the same bytes.

``python loadtest/kv_bench.py [--json FILE]``. A pull is what the decode stage waits for: read, question, answer. Pulls
and copies of one size take turns, so that both see the same machine and the same caches; each figure is a median.
"""

from __future__ import annotations

import mmap
import multiprocessing
import queue
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from tandem.kv.blocks import BlockPool
from tandem.kv.handle import HANDLE_VERSION
from tandem.kv.leases import LeaseTable
from tandem.kv.memory import advise_huge_pages
from tandem.kv.pull import PullResult
from tandem.kv.transfer import KvTransfer
from tandem.messages import KvFormat, KvHandle, StageName, WorkerInfo

MIB = 1 << 20
SIZES_MIB = (1, 4, 16, 64, 256)
BLOCK_BYTES = 16 * 23040
"""16 tokens of SmolLM2-135M in 16 bit."""
TIMEOUT_S = 60.0

_KV = KvFormat(fingerprint="bench", dtype="bfloat16", layout="bench", block_size=16)


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


@dataclass(frozen=True)
class KvBenchReport:
    """All sizes of one run."""

    block_bytes: int
    repetitions: int
    rows: list[KvBenchRow]


class _Worker:
    """KV memory and transfer of one side."""

    def __init__(self, worker_id: str, stage: StageName, num_blocks: int) -> None:
        self.memory = _memory(num_blocks * BLOCK_BYTES)
        self.pool = BlockPool(num_blocks)
        self.leases = LeaseTable(self.pool, TIMEOUT_S)
        self.transfer = KvTransfer(
            f"{worker_id}.1",
            self.memory.ctypes.data,
            BLOCK_BYTES,
            num_blocks,
            "DRAM",
            0,
            self.leases,
            TIMEOUT_S,
        )
        self.transfer.start()
        self.memory[:] = 1 if stage == "prefill" else 0
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=1,
            stage=stage,
            engine="none",
            kv=_KV,
            vocab_size=1,
            max_model_len=1,
            max_batch_size=1,
            transfer=self.transfer.info,
        )


def run_kv_bench(sizes_mib: Sequence[int] = SIZES_MIB, repetitions: int = 15) -> KvBenchReport:
    """Measure each size ``repetitions`` times."""
    num_blocks = _blocks(max(sizes_mib))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    prefill = context.Process(target=_serve_prefill, args=(theirs, num_blocks), daemon=True)
    prefill.start()
    theirs.close()
    decode = _Worker("decode", "decode", num_blocks)
    try:
        ours.send(decode.info)
        decode.transfer.pair(_receive(ours))
        source = _memory(num_blocks * BLOCK_BYTES)
        source[:] = 2
        rows = [_measure(decode, ours, source, mib, repetitions) for mib in sizes_mib]
    finally:
        decode.transfer.stop()
        prefill.kill()
        prefill.join()
    return KvBenchReport(BLOCK_BYTES, repetitions, rows)


def table(report: KvBenchReport) -> Table:
    """The report for a terminal."""
    blocks = f"{report.block_bytes / 1024:.0f} KiB blocks, median of {report.repetitions}"
    result = Table("size", "blocks", "pull ms", "pull GB/s", "memcpy GB/s", "ratio", title=f"KV transfer: {blocks}")
    for column in result.columns:
        column.justify = "right"
    for row in report.rows:
        figures = f"{row.pull_ms:.2f}", f"{row.pull_gb_per_s:.1f}", f"{row.memcpy_gb_per_s:.1f}", f"{row.ratio:.2f}"
        result.add_row(f"{row.mib} MiB", str(row.blocks), *figures)
    return result


def _measure(
    decode: _Worker, prefill: Connection, source: npt.NDArray[np.uint8], mib: int, repetitions: int
) -> KvBenchRow:
    blocks = _blocks(mib)
    size = blocks * BLOCK_BYTES
    pulls, copies = [], []
    for repetition in range(repetitions + 2):
        decode.memory[:size] = 0
        prefill.send(blocks)
        result = _pull(decode, _receive(prefill))
        if not (decode.memory[:size] == 1).all():
            raise RuntimeError(f"{mib} MiB: wrong bytes arrived")
        began = time.perf_counter()
        np.copyto(decode.memory[:size], source[:size])
        copied = time.perf_counter() - began
        if repetition >= 2:  # the first two warm up
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
    )


def _pull(decode: _Worker, handle: KvHandle) -> PullResult:
    results: queue.SimpleQueue[PullResult] = queue.SimpleQueue()
    ids = decode.pool.allocate(len(handle.block_ids))
    decode.transfer.pull("bench", handle, ids, results.put)
    result = results.get(timeout=2 * TIMEOUT_S)
    if result.error is not None:
        raise result.error
    decode.pool.free(ids)
    return result


def _serve_prefill(connection: Connection, num_blocks: int) -> None:
    """The other process: grants a lease on as many blocks as it is asked for, again and again."""
    worker = _Worker("prefill", "prefill", num_blocks)
    worker.transfer.pair(_receive(connection))
    connection.send(worker.info)
    while True:
        try:
            ids = worker.pool.allocate(connection.recv())
        except EOFError:
            return
        handle = KvHandle(
            version=HANDLE_VERSION,
            worker_id="prefill",
            epoch=1,
            lease_id=worker.leases.grant("bench", ids),
            kv=_KV,
            num_tokens=len(ids) * _KV.block_size,
            tokens_digest=b"",
            block_ids=ids,
        )
        connection.send(handle)


def _receive(connection: Connection) -> Any:
    if not connection.poll(TIMEOUT_S):
        raise TimeoutError("the other process does not answer")
    return connection.recv()


def _memory(size: int) -> npt.NDArray[np.uint8]:
    """Fresh memory with huge pages where the machine has them, as KV memory and copies alike get it."""
    memory = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)
    advise_huge_pages(memory.ctypes.data, size)
    return memory


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
