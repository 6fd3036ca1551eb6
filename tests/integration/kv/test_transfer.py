"""Hand-overs with real NIXL between real processes: what arrives, what is refused, and what a lost peer does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from kv_ranks import DEADLINE_S, Outcome

from tandem.errors import TandemError
from tandem.kv.blocks import BlockPool
from tandem.kv.leases import LeaseTable
from tandem.kv.part import PIECE_BYTES
from tandem.kv.transfer import KvTransfer
from tandem.messages import HeldBlocks, KvHandle, Partition, TransferInfo, WorkerInfo
from tests.integration.kv.side import BLOCK_BYTES, KV, Workers, introduce


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


def refusal(outcome: Outcome) -> tuple[str, str]:
    assert outcome.code is not None
    return outcome.code, outcome.message


def test_bytes_arrive_and_the_lease_ends(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", range(100, 110))
    assert prefill.state() == (10, 1, 1, 0)
    ids = decode.begin_pull("r", handle)
    result = decode.result()
    assert result.code is None
    assert (result.request_id, result.bytes_moved) == ("r", 10 * BLOCK_BYTES)
    assert decode.holds(ids, list(range(100, 110)))
    wait_until(lambda: prefill.state() == (0, 0, 1, 0))


@pytest.mark.parametrize("mapped", [True, False])
def test_scattered_blocks_arrive_in_order(workers: Workers, mapped: bool) -> None:
    """Neither side's blocks are consecutive, and the pull takes several pieces."""
    num_blocks = 3 * PIECE_BYTES // BLOCK_BYTES
    prefill, decode = workers.prefill(blocks=num_blocks, mapped=mapped), workers.decode(blocks=num_blocks)
    introduce(prefill, decode)
    handle = prefill.grant("r", range(num_blocks // 2))
    mixed = np.random.default_rng(0).permutation(len(handle.block_ids))
    handle = msgspec.structs.replace(handle, held=HeldBlocks(block_ids=[handle.block_ids[i] for i in mixed]))
    ids = decode.begin_pull("r", handle)
    result = decode.result()
    assert result.code is None
    assert result.bytes_moved == len(ids) * BLOCK_BYTES > PIECE_BYTES
    assert decode.holds(ids, list(mixed))


def test_second_pull_of_one_handle_is_refused(workers: Workers) -> None:
    prefill, first, second = workers.prefill(), workers.decode(), workers.decode("decode_1")
    introduce(prefill, first)
    introduce(prefill, second)
    handle = prefill.grant("r", [1])
    first.begin_pull("r", handle)
    assert first.result().code is None
    for decode in (first, second):
        decode.begin_pull("r", handle)
        assert refusal(decode.result())[0] == "handle_used"


def test_expired_lease_is_refused(workers: Workers) -> None:
    prefill, decode = workers.prefill(lease_s=0.2), workers.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1, 2])
    wait_until(lambda: prefill.state() == (0, 0, 1, 1))  # the transfer thread ends it, nobody asked
    decode.begin_pull("r", handle)
    assert refusal(decode.result())[0] == "lease_expired"


def test_blocks_that_changed_hands_during_the_pull_are_refused(workers: Workers) -> None:
    """The lease ran out and its blocks went to another request: the read sees those bytes, and is refused."""
    prefill, decode = workers.prefill(lease_s=0.2, blocks=4), workers.decode()
    introduce(prefill, decode)
    old = prefill.grant("old", [1, 2, 3, 4])
    wait_until(lambda: prefill.state()[3] == 1)
    new = prefill.grant("new", [5, 6, 7, 8])
    assert new.block_ids == old.block_ids
    ids = decode.begin_pull("old", old)
    assert refusal(decode.result())[0] == "lease_expired"
    assert decode.holds([ids[0]], [5])


def test_question_that_comes_before_the_pairing_is_not_lost(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    decode.pair(prefill.info)
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    time.sleep(0.3)  # lets several questions go unanswered
    assert decode.nothing_more()
    prefill.pair(decode.worker)
    assert decode.result().code is None


def test_pairing_twice_changes_nothing(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    for _ in range(3):
        introduce(prefill, decode)
        decode.begin_pull("r", prefill.grant("r", [1]))
        assert decode.result().code is None


def changed(handle: KvHandle, **fields: object) -> KvHandle:
    return msgspec.structs.replace(handle, **fields)


def test_what_does_not_fit_is_refused_without_a_read(workers: Workers) -> None:
    prefill, decode = workers.prefill(blocks=8), workers.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    for wrong, code in [
        (changed(handle, worker_id="prefill_9"), "handle_unknown_worker"),
        (changed(handle, epoch=2), "handle_stale_epoch"),
        (changed(handle, held=HeldBlocks(block_ids=[8])), "handle_malformed"),
        (changed(handle, held=HeldBlocks(block_ids=[-1])), "handle_malformed"),
        (changed(handle, held=HeldBlocks(block_ids=[])), "handle_malformed"),
    ]:
        decode.begin_pull("r", wrong)
        result = decode.result()
        assert refusal(result)[0] == code
        assert result.bytes_moved == 0
    decode.begin_pull("r", handle)
    assert decode.result().code is None


def test_request_has_one_pull_at_a_time(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    decode.pair(prefill.info)  # one-sided: the first pull cannot be confirmed yet
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    with pytest.raises(TandemError, match="request 'r' has a pull that has not ended") as error:
        decode.begin_pull("r", handle)
    assert error.value.code == "invalid_request"
    prefill.pair(decode.worker)
    assert decode.result().code is None


def test_peer_with_other_blocks_is_not_paired(workers: Workers) -> None:
    decode = workers.decode()
    (transfer,) = decode.worker.transfers

    def with_transfers(*transfers: TransferInfo) -> WorkerInfo:
        return msgspec.structs.replace(decode.worker, transfers=list(transfers))

    for peer, text in [
        (with_transfers(msgspec.structs.replace(transfer, block_bytes=1)), f"is 1 instead of {BLOCK_BYTES}"),
        (with_transfers(), "'decode_0' has no KV transfer"),
        (with_transfers(transfer, transfer), "'decode_0' has 2 KV transfers, but is tensor-parallel 1 x pipeline 1"),
    ]:
        with pytest.raises(TandemError, match=text) as error:
            decode.pair(peer)
        assert error.value.code == "worker_incompatible"


def test_killed_peer_fails_the_pull_and_is_named(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    assert decode.result().code is None
    prefill.kill()
    for _ in range(2):
        ids = decode.begin_pull("r", handle)
        code, message = refusal(decode.result())
        assert code == "transfer_failed"
        assert "prefill_0.1.0" in message
        decode.pool.free(ids)


@pytest.mark.parametrize(("mapped", "transports"), [(True, ""), (False, ""), (False, "tcp,self")])
def test_frozen_peer_fails_the_pull_and_its_blocks_wait_for_the_read(
    workers: Workers, mapped: bool, transports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the read hangs, its target blocks are not handed out; the peer's end ends the read."""
    if transports:
        monkeypatch.setenv("UCX_TLS", transports)
    environment = (("UCX_TLS", transports),) if transports else ()
    prefill = workers.prefill(environment=environment, mapped=mapped)
    decode = workers.decode(blocks=8, timeout_s=0.5)
    introduce(prefill, decode)
    handle = prefill.grant("r", [1, 2])
    prefill.leader.freeze()
    ids = decode.begin_pull("r", handle)
    code, message = refusal(decode.result())
    assert code == "transfer_failed"
    assert "prefill_0.1.0: no answer within 0.5 s" in message
    decode.pool.free(ids)
    waiting = decode.pool.used
    # 2 while the read hangs; 0 where it needs no help, and only the answer is missing
    assert waiting == 0 if mapped else waiting in (0, 2)
    if waiting:
        assert not set(decode.pool.allocate(6)) & set(ids)
    prefill.kill()
    wait_until(lambda: decode.pool.used == (6 if waiting else 0))
    assert decode.nothing_more()


def test_frozen_peer_that_thaws_is_used_again(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode(timeout_s=0.5)
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    prefill.leader.freeze()
    ids = decode.begin_pull("r", handle)
    assert refusal(decode.result())[0] == "transfer_failed"
    decode.pool.free(ids)
    prefill.leader.thaw()
    handle = prefill.grant("s", [2])
    ids = decode.begin_pull("s", handle)
    assert decode.result().code is None
    assert decode.holds([ids[0]], [2])
    wait_until(lambda: decode.pool.used == 1)


def test_new_epoch_replaces_the_old_one(workers: Workers) -> None:
    old, decode = workers.prefill(epoch=1), workers.decode()
    introduce(old, decode)
    stale = old.grant("r", [1])
    new = workers.prefill(epoch=2)
    introduce(new, decode)
    decode.begin_pull("r", stale)
    assert refusal(decode.result())[0] == "handle_stale_epoch"
    ids = decode.begin_pull("r", new.grant("r", [9]))
    assert decode.result().code is None
    assert decode.holds([ids[0]], [9])
    decode.pair(old.info)  # late: the old epoch does not come back
    decode.begin_pull("r", stale)
    assert refusal(decode.result())[0] == "handle_stale_epoch"


def test_pull_from_a_worker_that_is_replaced_meanwhile_fails(workers: Workers) -> None:
    old, decode = workers.prefill(epoch=1), workers.decode()
    decode.pair(old.info)  # one-sided, so that the pull stays under way
    decode.begin_pull("r", old.grant("r", [1]))
    new = workers.prefill(epoch=2)
    introduce(new, decode)
    code, message = refusal(decode.result())
    assert (code, "prefill_0.1.0 was lost or restarted" in message) == ("transfer_failed", True)


def test_restarted_decode_worker_is_answered(workers: Workers) -> None:
    """Prefill's side of a new epoch: the old decode worker's connection is of no use any more."""
    prefill, old = workers.prefill(), workers.decode(epoch=1)
    introduce(prefill, old)
    old.begin_pull("r", prefill.grant("r", [1]))
    assert old.result().code is None
    old.stop()
    new = workers.decode(epoch=2)
    introduce(prefill, new)
    new.begin_pull("r", prefill.grant("r", [1]))
    assert new.result().code is None


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.05])
def test_aborted_pull_ends_and_leaves_nothing(workers: Workers, delay_s: float) -> None:
    """Abort while the read or the confirmation is under way: the lease is never redeemed after the result."""
    num_blocks = 4 * PIECE_BYTES // BLOCK_BYTES
    prefill, decode = workers.prefill(blocks=num_blocks), workers.decode(blocks=num_blocks)
    decode.pair(prefill.info)  # one-sided, so that it cannot succeed before the abort
    handle = prefill.grant("r", range(num_blocks))
    ids = decode.begin_pull("r", handle)
    time.sleep(delay_s)
    decode.abort("r")
    decode.abort("nobody")
    assert refusal(decode.result())[0] == "cancelled"
    before = decode.memory.copy()
    decode.pool.free(ids)
    assert decode.pool.used == 0
    assert (decode.memory == before).all()
    assert prefill.state() == (num_blocks, 1, 1, 0)
    assert decode.nothing_more()


def test_many_pulls_at_once_end_each_with_its_own_bytes(workers: Workers) -> None:
    prefills = [workers.prefill(f"prefill_{i}") for i in range(2)]
    decode = workers.decode(blocks=128)
    for prefill in prefills:
        introduce(prefill, decode)
    targets: dict[str, tuple[list[int], int]] = {}
    for i in range(40):
        handle = prefills[i % 2].grant(f"r{i}", [3 * i, 3 * i + 1, 3 * i + 2])
        targets[f"r{i}"] = decode.begin_pull(f"r{i}", handle), 3 * i
    for _ in targets:
        result = decode.result()
        assert result.code is None
        ids, seed = targets[result.request_id]
        assert decode.holds(ids, [seed, seed + 1, seed + 2])
    assert decode.nothing_more()
    assert [p.state() for p in prefills] == [(0, 0, 20, 0)] * 2


def test_stop_ends_what_is_under_way(workers: Workers) -> None:
    prefill, decode = workers.prefill(), workers.decode()
    decode.pair(prefill.info)
    decode.begin_pull("r", prefill.grant("r", [1]))
    decode.stop()
    assert refusal(decode.result()) == ("transfer_failed", "the KV transfer was stopped")
    with pytest.raises(TandemError, match="has ended"):
        decode.abort("r")
    assert "kv-transfer" not in [t.name for t in threading.enumerate() if t is decode.transfer._thread]


def test_memory_that_cannot_be_registered_fails_the_start() -> None:
    transfer = KvTransfer(
        agent_name="x",
        address=4096,
        shared=None,
        block_bytes=BLOCK_BYTES,
        num_blocks=1,
        memory="VRAM",
        device_id=0,
        timeout_s=1.0,
        kv=KV,
        partition=Partition(),
        leases=LeaseTable(BlockPool(1), 1.0),
    )
    with pytest.raises(TandemError, match=r"NIXL: .*; see `tandem doctor`") as error:
        transfer.start()
    assert error.value.code == "engine_failed"
