"""Hand-overs with real NIXL between real processes: what arrives, what is refused, and what a lost peer does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from tandem.errors import TandemError
from tandem.kv.blocks import BlockPool
from tandem.kv.leases import LeaseTable
from tandem.kv.pull import PIECE_BYTES, PullResult
from tandem.kv.transfer import KvTransfer
from tandem.messages import KvHandle, WorkerInfo
from tests.integration.kv.side import BLOCK_BYTES, DEADLINE_S, Elsewhere, Side


class Stage:
    """Starts workers, and ends them after the test."""

    def __init__(self) -> None:
        self._prefills: list[Elsewhere] = []
        self._decodes: list[Side] = []

    def prefill(self, worker_id: str = "prefill_0", epoch: int = 1, **options: object) -> Elsewhere:
        self._prefills.append(Elsewhere(worker_id, epoch, **options))  # type: ignore[arg-type]
        return self._prefills[-1]

    def decode(self, worker_id: str = "decode_0", blocks: int = 64, timeout_s: float = 20.0, epoch: int = 1) -> Side:
        self._decodes.append(Side(worker_id, epoch, "decode", blocks, lease_s=60.0, timeout_s=timeout_s))
        return self._decodes[-1]

    def end(self) -> None:
        for prefill in self._prefills:
            prefill.kill()
        for decode in self._decodes:
            decode.stop()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.end()


def introduce(prefill: Elsewhere, decode: Side) -> None:
    decode.transfer.pair(prefill.info)
    prefill.pair(decode.info)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


def refusal(result: PullResult) -> tuple[str, str]:
    assert result.error is not None
    return result.error.code, result.error.message


def test_bytes_arrive_and_the_lease_ends(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", range(100, 110))
    assert prefill.state() == (10, 1, 1, 0)
    ids = decode.begin_pull("r", handle)
    result = decode.result()
    assert result.error is None
    assert (result.request_id, result.bytes_moved) == ("r", 10 * BLOCK_BYTES)
    assert all(decode.equals(block, 100 + i) for i, block in enumerate(ids))
    assert prefill.state() == (0, 0, 1, 0)


def test_scattered_blocks_arrive_in_order(stage: Stage) -> None:
    """Neither side's blocks are consecutive, and the pull takes several pieces."""
    num_blocks = 3 * PIECE_BYTES // BLOCK_BYTES
    prefill, decode = stage.prefill(blocks=num_blocks), stage.decode(blocks=num_blocks)
    introduce(prefill, decode)
    handle = prefill.grant("r", range(num_blocks // 2))
    mixed = np.random.default_rng(0).permutation(len(handle.block_ids))
    handle = msgspec.structs.replace(handle, block_ids=[handle.block_ids[i] for i in mixed])
    ids = decode.begin_pull("r", handle)
    result = decode.result()
    assert result.error is None
    assert result.bytes_moved == len(ids) * BLOCK_BYTES > PIECE_BYTES
    assert [i for i, block in enumerate(ids) if not decode.equals(block, mixed[i])] == []


def test_second_pull_of_one_handle_is_refused(stage: Stage) -> None:
    prefill, first, second = stage.prefill(), stage.decode(), stage.decode("decode_1")
    introduce(prefill, first)
    introduce(prefill, second)
    handle = prefill.grant("r", [1])
    first.begin_pull("r", handle)
    assert first.result().error is None
    for decode in (first, second):
        decode.begin_pull("r", handle)
        assert refusal(decode.result())[0] == "handle_used"


def test_expired_lease_is_refused(stage: Stage) -> None:
    prefill, decode = stage.prefill(lease_s=0.2), stage.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1, 2])
    wait_until(lambda: prefill.state() == (0, 0, 1, 1))  # the transfer thread ends it, nobody asked
    decode.begin_pull("r", handle)
    assert refusal(decode.result())[0] == "lease_expired"


def test_blocks_that_changed_hands_during_the_pull_are_refused(stage: Stage) -> None:
    """The lease ran out and its blocks went to another request: the read sees those bytes, and is refused."""
    prefill, decode = stage.prefill(lease_s=0.2, blocks=4), stage.decode()
    introduce(prefill, decode)
    old = prefill.grant("old", [1, 2, 3, 4])
    wait_until(lambda: prefill.state()[3] == 1)
    new = prefill.grant("new", [5, 6, 7, 8])
    assert new.block_ids == old.block_ids
    ids = decode.begin_pull("old", old)
    assert refusal(decode.result())[0] == "lease_expired"
    assert decode.equals(ids[0], 5)


def test_question_that_comes_before_the_pairing_is_not_lost(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    decode.transfer.pair(prefill.info)
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    time.sleep(0.3)  # lets several questions go unanswered
    assert decode.nothing_more()
    prefill.pair(decode.info)
    assert decode.result().error is None


def test_pairing_twice_changes_nothing(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    for _ in range(3):
        introduce(prefill, decode)
        decode.begin_pull("r", prefill.grant("r", [1]))
        assert decode.result().error is None


def changed(handle: KvHandle, **fields: object) -> KvHandle:
    return msgspec.structs.replace(handle, **fields)


def test_what_does_not_fit_is_refused_without_a_read(stage: Stage) -> None:
    prefill, decode = stage.prefill(blocks=8), stage.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    for wrong, code in [
        (changed(handle, worker_id="prefill_9"), "handle_unknown_worker"),
        (changed(handle, epoch=2), "handle_stale_epoch"),
        (changed(handle, block_ids=[8]), "handle_malformed"),
        (changed(handle, block_ids=[-1]), "handle_malformed"),
        (changed(handle, block_ids=[]), "handle_malformed"),
    ]:
        decode.begin_pull("r", wrong)
        result = decode.result()
        assert refusal(result)[0] == code
        assert result.bytes_moved == 0
    decode.begin_pull("r", handle)
    assert decode.result().error is None


def test_request_has_one_pull_at_a_time(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    decode.transfer.pair(prefill.info)  # one-sided: the first pull cannot be confirmed yet
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    decode.begin_pull("r", handle)
    assert refusal(decode.result()) == ("invalid_request", "request 'r' has a pull under way")
    prefill.pair(decode.info)
    assert decode.result().error is None


def test_peer_with_other_blocks_is_not_paired(stage: Stage) -> None:
    decode = stage.decode()
    assert decode.info.transfer is not None
    other = changed_transfer(decode.info, block_bytes=1)
    for peer in (other, msgspec.structs.replace(other, transfer=None)):
        with pytest.raises(TandemError, match=f"block_bytes of 'decode_0' .* here it is {BLOCK_BYTES}") as error:
            decode.transfer.pair(peer)
        assert error.value.code == "worker_incompatible"


def changed_transfer(info: WorkerInfo, **fields: object) -> WorkerInfo:
    assert info.transfer is not None
    return msgspec.structs.replace(info, transfer=msgspec.structs.replace(info.transfer, **fields))


def test_killed_peer_fails_the_pull_and_is_named(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    decode.begin_pull("r", handle)
    assert decode.result().error is None
    prefill.kill()
    for _ in range(2):
        ids = decode.begin_pull("r", handle)
        code, message = refusal(decode.result())
        assert code == "transfer_failed"
        assert "prefill_0.1" in message
        decode.pool.free(ids)


@pytest.mark.parametrize("transports", ["", "tcp,self"])
def test_frozen_peer_fails_the_pull_and_its_blocks_wait_for_the_read(
    stage: Stage, transports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the read hangs, its target blocks are not handed out; the peer's end ends the read."""
    if transports:
        monkeypatch.setenv("UCX_TLS", transports)
    prefill, decode = stage.prefill(), stage.decode(blocks=8, timeout_s=0.5)
    introduce(prefill, decode)
    handle = prefill.grant("r", [1, 2])
    prefill.freeze()
    ids = decode.begin_pull("r", handle)
    code, message = refusal(decode.result())
    assert code == "transfer_failed"
    assert "prefill_0.1: no answer within 0.5 s" in message
    decode.pool.free(ids)
    waiting = decode.pool.used
    assert waiting in (0, 2)  # 2 while the read hangs; 0 where it needs no help, and only the answer is missing
    if waiting:
        assert not set(decode.pool.allocate(6)) & set(ids)
    prefill.kill()
    wait_until(lambda: decode.pool.used == (6 if waiting else 0))
    assert decode.nothing_more()


def test_frozen_peer_that_thaws_is_used_again(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode(timeout_s=0.5)
    introduce(prefill, decode)
    handle = prefill.grant("r", [1])
    prefill.freeze()
    ids = decode.begin_pull("r", handle)
    assert refusal(decode.result())[0] == "transfer_failed"
    decode.pool.free(ids)
    prefill.thaw()
    handle = prefill.grant("s", [2])
    ids = decode.begin_pull("s", handle)
    assert decode.result().error is None
    assert decode.equals(ids[0], 2)
    wait_until(lambda: decode.pool.used == 1)


def test_new_epoch_replaces_the_old_one(stage: Stage) -> None:
    old, decode = stage.prefill(epoch=1), stage.decode()
    introduce(old, decode)
    stale = old.grant("r", [1])
    new = stage.prefill(epoch=2)
    introduce(new, decode)
    decode.begin_pull("r", stale)
    assert refusal(decode.result())[0] == "handle_stale_epoch"
    ids = decode.begin_pull("r", new.grant("r", [9]))
    assert decode.result().error is None
    assert decode.equals(ids[0], 9)
    decode.transfer.pair(old.info)  # late: the old epoch does not come back
    decode.begin_pull("r", stale)
    assert refusal(decode.result())[0] == "handle_stale_epoch"


def test_pull_from_a_worker_that_is_replaced_meanwhile_fails(stage: Stage) -> None:
    old, decode = stage.prefill(epoch=1), stage.decode()
    decode.transfer.pair(old.info)  # one-sided, so that the pull stays under way
    decode.begin_pull("r", old.grant("r", [1]))
    new = stage.prefill(epoch=2)
    introduce(new, decode)
    code, message = refusal(decode.result())
    assert (code, "prefill_0.1 was lost or restarted" in message) == ("transfer_failed", True)


def test_restarted_decode_worker_is_answered(stage: Stage) -> None:
    """Prefill's side of a new epoch: the old decode worker's connection is of no use any more."""
    prefill, old = stage.prefill(), stage.decode(epoch=1)
    introduce(prefill, old)
    old.begin_pull("r", prefill.grant("r", [1]))
    assert old.result().error is None
    old.stop()
    new = stage.decode(epoch=2)
    introduce(prefill, new)
    new.begin_pull("r", prefill.grant("r", [1]))
    assert new.result().error is None


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.05])
def test_aborted_pull_ends_and_leaves_nothing(stage: Stage, delay_s: float) -> None:
    """Abort while the read or the confirmation is under way: the lease is never redeemed after the result."""
    num_blocks = 4 * PIECE_BYTES // BLOCK_BYTES
    prefill, decode = stage.prefill(blocks=num_blocks), stage.decode(blocks=num_blocks)
    decode.transfer.pair(prefill.info)  # one-sided, so that it cannot succeed before the abort
    handle = prefill.grant("r", range(num_blocks))
    ids = decode.begin_pull("r", handle)
    time.sleep(delay_s)
    decode.transfer.abort("r")
    decode.transfer.abort("nobody")
    assert refusal(decode.result())[0] == "cancelled"
    before = decode.memory.copy()
    decode.pool.free(ids)
    assert decode.pool.used == 0
    assert (decode.memory == before).all()
    assert prefill.state() == (num_blocks, 1, 1, 0)
    assert decode.nothing_more()


def test_many_pulls_at_once_end_each_with_its_own_bytes(stage: Stage) -> None:
    prefills = [stage.prefill(f"prefill_{i}") for i in range(2)]
    decode = stage.decode(blocks=128)
    for prefill in prefills:
        introduce(prefill, decode)
    targets: dict[str, tuple[list[int], int]] = {}
    for i in range(40):
        handle = prefills[i % 2].grant(f"r{i}", [3 * i, 3 * i + 1, 3 * i + 2])
        targets[f"r{i}"] = decode.begin_pull(f"r{i}", handle), 3 * i
    for _ in targets:
        result = decode.result()
        assert result.error is None
        ids, seed = targets[result.request_id]
        assert all(decode.equals(block, seed + k) for k, block in enumerate(ids))
    assert decode.nothing_more()
    assert [p.state() for p in prefills] == [(0, 0, 20, 0)] * 2


def test_stop_ends_what_is_under_way(stage: Stage) -> None:
    prefill, decode = stage.prefill(), stage.decode()
    decode.transfer.pair(prefill.info)
    decode.begin_pull("r", prefill.grant("r", [1]))
    decode.transfer.stop()
    assert refusal(decode.result()) == ("transfer_failed", "the KV transfer was stopped")
    with pytest.raises(TandemError, match="has ended"):
        decode.transfer.abort("r")
    assert "kv-transfer" not in [t.name for t in threading.enumerate() if t is decode.transfer._thread]


def test_memory_that_cannot_be_registered_fails_the_start() -> None:
    transfer = KvTransfer("x", 4096, 4096, 1, "VRAM", 0, LeaseTable(BlockPool(1), 1.0), 1.0)
    with pytest.raises(TandemError, match=r"NIXL: .*; see `tandem doctor`") as error:
        transfer.start()
    assert error.value.code == "engine_failed"
