"""Followers, ours or the peer's, that fail in the middle of a pull: it ends, and no block is handed out too early."""

from __future__ import annotations

import time
from collections.abc import Callable

from kv_ranks import DEADLINE_S, Group, WorkerSpec

from tandem.messages import KvFormat, KvHandle, PullOrder
from tests.integration.kv.side import Workers, group, introduce

KV = KvFormat(
    fingerprint="f",
    dtype="bfloat16",
    layout="head-major-v2",
    block_size=16,
    num_layers=4,
    num_kv_heads=2,
    slice_bytes=4096,
)
TCP = (("UCX_TLS", "tcp,self"),)
"""As between hosts: bytes move only while both sides help; on one host the reader copies them alone."""


def start(
    workers: Workers, sources: int = 1, lease_s: float = 60.0, timeout_s: float = 1.0, tcp: bool = False
) -> tuple[Group, Group]:
    """A prefill worker and a decode worker of two ranks."""
    environment = TCP if tcp else ()
    prefill, decode = workers.start(
        WorkerSpec(
            "prefill_0", "prefill", KV, group(sources), lease_s=lease_s, environment=environment, mapped=not tcp
        ),
        WorkerSpec("decode_0", "decode", KV, group(2), timeout_s=timeout_s, environment=environment),
    )
    introduce(prefill, decode)
    return prefill, decode


def order_pull(decode: Group, request_id: str, handle: KvHandle) -> list[int]:
    """As ``begin_pull``, but the follower may be frozen: ``finish`` of it is left over."""
    ids: list[int] = decode.leader.call("allocate_blocks", len(handle.block_ids))
    order = PullOrder(request_id=request_id, handle=handle, block_ids=ids)
    decode.leader.call("pull", order)
    decode.followers[0].begin("pull", order)
    return ids


def wait_until(decode: Group, condition: Callable[[], bool]) -> None:
    """Carries reports meanwhile; no pull may end."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        assert decode.carry(0.01) == []


def test_frozen_follower_fails_the_pull_and_pins_its_blocks_until_it_reports(workers: Workers) -> None:
    prefill, decode = start(workers)
    handle = prefill.grant("r", [1, 2, 3])
    decode.followers[0].freeze()
    ids = order_pull(decode, "r", handle)
    outcome = decode.result()
    assert outcome.code == "transfer_failed"
    assert "no report of rank 1 of the group" in outcome.message
    assert "within 2 s" in outcome.message
    decode.leader.call("free", ids)
    assert decode.state()[0] == 3
    assert prefill.state() == (3, 1, 1, 0)  # nobody asked: the lease is held
    decode.followers[0].thaw()
    decode.followers[0].finish()
    wait_until(decode, lambda: decode.state()[0] == 0)
    assert [(report.code, report.still_writing) for report in decode.ended] == [(None, False)]


def hang(workers: Workers) -> tuple[Group, Group, list[int]]:
    """A pull whose follower hangs in mid-read, since its source rank stands still; the leader's part goes well."""
    prefill, decode = start(workers, sources=2, tcp=True)
    ids = decode.begin_pull("first", prefill.grant("first", [9]))
    assert decode.result().code is None  # connected
    decode.leader.call("free", ids)
    decode.ended.clear()
    handle = prefill.grant("r", [1, 2, 3])
    prefill.followers[0].freeze()
    return prefill, decode, decode.begin_pull("r", handle)


def test_follower_whose_read_hangs_reports_twice(workers: Workers) -> None:
    prefill, decode, ids = hang(workers)
    outcome = decode.result()
    assert outcome.code == "transfer_failed"
    assert "rank 1 of the group: reading lease 2 of KV worker prefill_0.1.1: no answer" in outcome.message
    assert outcome.bytes_moved == 3 * KV.num_layers * KV.slice_bytes  # the leader's
    assert [report.still_writing for report in decode.ended] == [True]
    decode.leader.call("free", ids)
    assert decode.state()[0] == 3
    prefill.followers[0].kill()
    wait_until(decode, lambda: decode.state()[0] == 0)
    assert [report.still_writing for report in decode.ended] == [True, False]


def test_follower_killed_in_mid_read_fails_the_pull_and_its_blocks_are_never_handed_out(workers: Workers) -> None:
    _, decode, ids = hang(workers)
    decode.followers[0].kill()
    outcome = decode.result()
    assert outcome.code == "transfer_failed"
    assert "no report of rank 1 of the group" in outcome.message
    decode.leader.call("free", ids)
    assert decode.state()[0] == 3
    assert set(decode.leader.call("allocate_blocks", 61)).isdisjoint(ids)


def test_follower_frozen_in_mid_read_comes_back(workers: Workers) -> None:
    prefill, decode, ids = hang(workers)
    decode.followers[0].freeze()
    assert decode.result().code == "transfer_failed"
    decode.leader.call("free", ids)
    assert decode.state()[0] == 3
    prefill.followers[0].thaw()
    decode.followers[0].thaw()
    wait_until(decode, lambda: decode.state()[0] == 0)
    ids = decode.begin_pull("s", prefill.grant("s", [4, 5]))
    assert decode.result().code is None
    assert decode.all("wrong_blocks", ids, [4, 5]) == [[], []]


def test_lease_that_ends_while_a_follower_reads_is_refused(workers: Workers) -> None:
    prefill, decode = start(workers, lease_s=0.3, timeout_s=20.0)
    decode.followers[0].freeze()
    ids = order_pull(decode, "r", prefill.grant("r", [1, 2]))
    wait_until(decode, lambda: prefill.state()[3] == 1)
    prefill.grant("other", [5, 6])  # into the same blocks
    decode.followers[0].thaw()
    decode.followers[0].finish()
    outcome = decode.result()
    assert outcome.code == "lease_expired"
    assert [report.code for report in decode.ended] == [None]
    decode.leader.call("free", ids)
    assert decode.state()[0] == 0


def test_handle_of_an_earlier_epoch_is_refused_on_every_rank(workers: Workers) -> None:
    prefill, decode = start(workers)
    stale = prefill.grant("r", [1])
    (new,) = workers.start(WorkerSpec("prefill_0", "prefill", KV, group(2), epoch=2))
    introduce(new, decode)
    ids = decode.begin_pull("r", stale)
    assert decode.result().code == "handle_stale_epoch"
    decode.leader.call("free", ids)
    wait_until(decode, lambda: decode.state()[0] == 0)
    assert [(report.code, report.bytes_moved) for report in decode.ended] == [("handle_stale_epoch", 0)]
    ids = decode.begin_pull("s", new.grant("s", [4, 5]))
    assert decode.result().code is None
    assert decode.all("wrong_blocks", ids, [4, 5]) == [[], []]


def test_aborted_pull_ends_on_every_rank_and_its_id_may_be_used_again(workers: Workers) -> None:
    prefill, decode = start(workers, timeout_s=20.0)
    handle = prefill.grant("r", [1, 2])
    decode.followers[0].freeze()
    ids = order_pull(decode, "r", handle)
    decode.leader.call("abort", "r")
    assert decode.result().code == "cancelled"
    decode.leader.call("free", ids)
    assert decode.state()[0] == 2
    decode.followers[0].thaw()
    decode.followers[0].finish()
    decode.followers[0].call("abort", "r")
    wait_until(decode, lambda: decode.state()[0] == 0)
    assert prefill.state()[1] == 1
    ids = decode.begin_pull("r", handle)
    assert decode.result().code is None
    assert decode.all("wrong_blocks", ids, [1, 2]) == [[], []]
