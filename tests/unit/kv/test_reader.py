"""A follower's transfer: whatever becomes of a read, it is reported, and once."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tandem.kv.reader import KvReader
from tandem.messages import HeldBlocks, KvFormat, KvHandle, Partition, PullOrder, ReadEnded

KV = KvFormat(fingerprint="f", dtype="d", layout="l", block_size=4, num_layers=2, num_kv_heads=2, slice_bytes=2048)
PARTITION = Partition(tensor_parallel_size=2)
DEADLINE_S = 30.0
MEMORY = np.frombuffer(mmap.mmap(-1, 4 * 4096), dtype=np.uint8)


def make(block_bytes: int = 4096) -> KvReader:
    return KvReader(
        agent_name="decode_0.1.1",
        address=MEMORY.ctypes.data,
        shared=None,
        block_bytes=block_bytes,
        num_blocks=4,
        memory="DRAM",
        device_id=0,
        timeout_s=1.0,
        kv=KV,
        partition=PARTITION,
        rank=1,
    )


@pytest.fixture
def reader() -> Iterator[KvReader]:
    reader = make()
    reader.start()
    yield reader
    reader.stop()


def order(request_id: str) -> PullOrder:
    handle = KvHandle(
        version=2,
        worker_id="prefill_0",
        epoch=1,
        lease_id=1,
        kv=KV,
        partition=Partition(),
        num_tokens=4,
        tokens_digest=b"",
        held=HeldBlocks(block_ids=[0]),
    )
    return PullOrder(request_id=request_id, handle=handle, block_ids=[1])


def reports(reader: KvReader, count: int) -> list[ReadEnded]:
    found: list[ReadEnded] = []
    end = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < end, "no report"
        found += reader.ended()
        time.sleep(0.001)
    return found


def test_read_from_a_stranger_is_reported_as_such(reader: KvReader) -> None:
    reader.read(order("r"))
    reader.read(order("s"))
    one, two = reports(reader, 2)
    assert (one.request_id, two.request_id, one.rank, one.code) == ("r", "s", 1, "handle_unknown_worker")
    assert (one.bytes_moved, one.still_writing) == (0, False)
    assert "prefill_0" in one.message
    assert reader.ended() == []


def test_read_after_the_end_is_reported_too(reader: KvReader) -> None:
    reader.stop()
    reader.read(order("r"))
    (report,) = reader.ended()
    assert (report.code, report.still_writing) == ("transfer_failed", False)
    reader.abort("r")
    reader.serve(True)


def test_blocks_of_another_size_than_the_rank_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="block_bytes is 8192, but rank 1 holds 4096 of a block"):
        make(block_bytes=8192)
