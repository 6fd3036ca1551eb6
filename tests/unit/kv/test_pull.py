"""What followers report, and what a pull makes of it. Reads under way are the integration tests' matter."""

from __future__ import annotations

import pytest

from tandem.errors import ErrorCode, TandemError
from tandem.kv.part import PartRead
from tandem.kv.pull import Pull, PullResult
from tandem.messages import HeldBlocks, KvFormat, KvHandle, Partition, ReadEnded

SHARES = {1: 100, 2: 50}


def make(shares: dict[int, int] = SHARES) -> tuple[Pull, list[PullResult]]:
    """A pull whose own part is not begun, so that nothing of this rank is under way."""
    kv = KvFormat(fingerprint="f", dtype="d", layout="l", block_size=1, num_layers=1, num_kv_heads=3, slice_bytes=8)
    handle = KvHandle(
        version=2,
        worker_id="prefill_0",
        epoch=1,
        lease_id=1,
        kv=kv,
        partition=Partition(),
        num_tokens=1,
        tokens_digest=b"",
        held=HeldBlocks(block_ids=[0]),
    )
    results: list[PullResult] = []
    return Pull(PartRead("r", handle, [0], 1.0), shares, results.append, 1.0), results


def report(rank: int, moved: int, code: ErrorCode | None = None, writing: bool = False) -> ReadEnded:
    return ReadEnded(
        request_id="r", rank=rank, bytes_moved=moved, code=code, message="why" if code else "", still_writing=writing
    )


def stopped_by(pull: Pull) -> TandemError:
    with pytest.raises(TandemError) as error:
        pull.step()
    return error.value


def test_blocks_are_free_to_use_when_the_last_follower_has_reported() -> None:
    pull, _ = make()
    assert pull.may_write()
    pull.take(report(2, 50))
    assert pull.may_write()
    pull.take(report(1, 100))
    assert not pull.may_write()
    assert not pull.step()


def test_a_group_of_one_waits_for_nobody() -> None:
    assert not make({})[0].may_write()


def test_bytes_are_those_of_all_ranks_that_reported() -> None:
    pull, results = make()
    pull.take(report(2, 50))
    pull.take(report(1, 100))
    pull.end(None)
    assert [(r.request_id, r.error, r.bytes_moved) for r in results] == [("r", None, 150)]


def test_failed_follower_is_named_with_its_reason() -> None:
    pull, _ = make()
    pull.take(report(2, 0, "handle_stale_epoch"))
    error = stopped_by(pull)
    assert (error.code, error.message) == ("handle_stale_epoch", "rank 2 of the group: why")
    assert pull.may_write()  # rank 1 has not reported
    pull.take(report(1, 100))
    assert not pull.may_write()


def test_follower_that_still_writes_is_waited_for_until_its_second_report() -> None:
    pull, _ = make()
    pull.take(report(1, 100))
    pull.take(report(2, 0, "transfer_failed", writing=True))
    assert stopped_by(pull).code == "transfer_failed"
    assert pull.may_write()
    pull.take(report(2, 0, "transfer_failed"))
    assert not pull.may_write()


@pytest.mark.parametrize("moved", [0, 99, 101])
def test_follower_that_read_another_number_of_bytes_fails_the_pull(moved: int) -> None:
    pull, _ = make()
    pull.take(report(1, moved))
    assert stopped_by(pull).message == f"rank 1 of the group has read {moved} bytes instead of 100"


def test_a_report_of_an_end_counts_once() -> None:
    pull, results = make()
    pull.take(report(1, 100))
    pull.take(report(1, 0, "transfer_failed"))
    pull.take(report(2, 50))
    assert not pull.step()
    pull.end(None)
    assert results[0].bytes_moved == 150


def test_the_first_reason_counts() -> None:
    pull, _ = make()
    pull.stop(TandemError("cancelled", "enough"))
    pull.take(report(1, 0, "transfer_failed"))
    assert stopped_by(pull).code == "cancelled"
