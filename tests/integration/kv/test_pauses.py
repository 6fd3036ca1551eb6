"""Either side stands still for longer than the lease, and goes on: wrong KV is never used, and nothing is left."""

from __future__ import annotations

import time

import pytest
from kv_ranks import Outcome, WorkerSpec

from tandem.kv.part import PIECE_BYTES
from tests.integration.kv.side import BLOCK_BYTES, KV, Workers, introduce
from tests.integration.kv.test_transfer import wait_until

LEASE_S = 0.3
MANY = 4 * PIECE_BYTES // BLOCK_BYTES
"""Blocks that take several reads."""


def is_refused(outcome: Outcome) -> bool:
    """Whether it ended with the one error that it may end with, rather than well."""
    assert outcome.code in (None, "lease_expired")
    return outcome.code is not None


def test_prefill_that_stood_still_past_the_lease_confirms_nothing(workers: Workers) -> None:
    """It is asked while it stands still. Its transfer thread hears of question and time together."""
    prefill, decode = workers.prefill(lease_s=LEASE_S, blocks=4), workers.decode()
    introduce(prefill, decode)
    for round_ in range(3):
        handle = prefill.grant(f"old {round_}", [1, 2, 3, 4])
        prefill.leader.freeze()
        ids = decode.begin_pull(f"old {round_}", handle)
        time.sleep(LEASE_S + 0.1)
        assert decode.nothing_more()
        prefill.leader.thaw()
        assert is_refused(decode.result())
        decode.pool.free(ids)
        wait_until(lambda: decode.pool.used == 0)
    new = prefill.grant("new", [5, 6, 7, 8])
    ids = decode.begin_pull("new", new)
    assert not is_refused(decode.result())
    assert decode.holds(ids, [5, 6, 7, 8])
    wait_until(lambda: prefill.state() == (0, 0, 4, 3))


@pytest.mark.parametrize("transports", ["", "tcp,self"])
def test_decode_that_stood_still_in_mid_pull_uses_no_block_of_another_request(
    workers: Workers, transports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it stands still its lease runs out, and the blocks are filled for somebody else."""
    if transports:
        monkeypatch.setenv("UCX_TLS", transports)
    environment = (("UCX_TLS", transports),) if transports else ()
    prefill, decode = workers.start(
        WorkerSpec("prefill_0", "prefill", KV, blocks=MANY, lease_s=LEASE_S, environment=environment),
        WorkerSpec("decode_0", "decode", KV, blocks=MANY, environment=environment),
    )
    introduce(prefill, decode)
    expired = 0
    for number, delay_s in enumerate([0.0, 0.005, 0.02]):
        handle = prefill.grant("old", range(MANY))
        ids = decode.begin_pull("old", handle)
        time.sleep(delay_s)
        decode.leader.freeze()
        wait_until(lambda: prefill.state()[1] == 0)  # redeemed, or run out
        other: list[int] = prefill.leader.call("allocate_blocks", MANY)
        prefill.all("fill", other, list(range(MANY, 2 * MANY)))
        decode.leader.thaw()
        if is_refused(decode.result()):
            expired += 1
        else:
            assert decode.leader.call("wrong_blocks", ids, list(range(MANY))) == []
        decode.leader.call("free", ids)
        prefill.leader.call("free", other)
        used, held, granted, ran_out = prefill.state()
        assert (used, held, granted) == (0, 0, number + 1)
        assert ran_out >= expired  # also one that decode had seen to hold, and had not said so before it stood still
        wait_until(lambda: decode.state()[0] == 0)
    assert expired > 0, "it was never stopped in the midst of a pull"
