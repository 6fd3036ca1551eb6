"""Hand-overs between unlike groups, a process per rank: every byte on every rank, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from kv_ranks import Group, WorkerSpec

from tandem.kv.reshard import block_bytes_of
from tandem.messages import HeldBlocks, KvFormat, Partition
from tests.integration.kv.side import Workers, group, introduce
from tests.integration.kv.test_transfer import wait_until

SEEDS = [7, 3, 90, 4, 5, 6, 41, 0, 12]


def kv_of(num_layers: int, num_kv_heads: int) -> KvFormat:
    return KvFormat(
        fingerprint="f",
        dtype="bfloat16",
        layout="head-major-v2",
        block_size=16,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        slice_bytes=4096,
    )


@pytest.mark.parametrize(
    ("source", "target", "kv"),
    [
        (group(1), group(3), kv_of(5, 3)),
        (group(3), group(1), kv_of(5, 3)),
        (group(2), group(4), kv_of(3, 4)),
        (group(4), group(2), kv_of(3, 4)),
        (group(4), group(3), kv_of(2, 2)),
        (group(1, 2), group(1), kv_of(5, 3)),
        (group(1), group(1, 2), kv_of(5, 3)),
        (group(2, 2), group(4), kv_of(5, 4)),
    ],
    ids=["1to3", "3to1", "2to4", "4to2", "copies", "2stagesto1", "1to2stages", "2x2to4"],
)
def test_every_rank_gets_its_bytes_and_nothing_else(
    workers: Workers, source: Partition, target: Partition, kv: KvFormat
) -> None:
    """What is mapped is copied run by run, and NIXL moves the same runs."""
    *sources, decode = workers.start(
        WorkerSpec("prefill_0", "prefill", kv, source),
        WorkerSpec("prefill_1", "prefill", kv, source, mapped=False),
        WorkerSpec("decode_0", "decode", kv, target),
    )
    for prefill in sources:
        introduce(prefill, decode)
        check_bytes(prefill, decode, kv)


def check_bytes(prefill: Group, decode: Group, kv: KvFormat) -> None:
    target = decode.spec.partition
    decode.all("erase", decode.spec.blocks)
    decode.ended.clear()
    handle = prefill.grant("r", SEEDS)
    mixed = [4, 0, 1, 2, 8, 7, 6, 3, 5]
    handle = msgspec.structs.replace(handle, held=HeldBlocks(block_ids=[handle.block_ids[place] for place in mixed]))
    decode.leader.call("allocate_blocks", 5)  # so that blocks have other numbers here
    ids = decode.begin_pull(prefill.spec.worker_id, handle)
    outcome = decode.result()
    assert outcome.code is None, outcome.message
    assert decode.all("wrong_blocks", ids, [SEEDS[place] for place in mixed]) == [[]] * target.size
    assert decode.all("written_blocks") == [ids] * target.size
    shares = [len(ids) * block_bytes_of(target, rank, kv) for rank in range(target.size)]
    assert outcome.bytes_moved == sum(shares)
    assert {report.rank: report.bytes_moved for report in decode.ended} == dict(enumerate(shares[1:], 1))
    wait_until(lambda: prefill.state() == (0, 0, 1, 0))
