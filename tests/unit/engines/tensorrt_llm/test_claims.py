"""Leases are claimed over a socket, once each, and only by who has the deployment's key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import zmq

from tandem.engines.tensorrt_llm import claims
from tandem.engines.tensorrt_llm.claims import ClaimClient, ClaimServer, open_note, seal_note
from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.kv.blocks import BlockPool
from tandem.kv.leases import LeaseTable
from tandem.messages import Confirm, Confirmed, NotConfirmed

KEYS, OTHER = Keys([b"k" * 32]), Keys([b"o" * 32])
HOLDER = "prefill_0-1"


@pytest.fixture
def leases() -> LeaseTable:
    return LeaseTable(BlockPool(1), 60.0)


@pytest.fixture
def server(leases: LeaseTable) -> Iterator[ClaimServer]:
    running = ClaimServer(HOLDER, leases, KEYS, "127.0.0.1")
    yield running
    running.stop()


def claim(address: str, lease_id: int, holder: str = HOLDER, keys: Keys = KEYS, timeout_s: float = 30.0) -> str:
    """How prefill answers: "" for yes, or the code of its refusal."""

    async def run() -> None:
        client = ClaimClient("decode_0-1", keys, timeout_s)
        try:
            await client.claim(address, holder, lease_id)
        finally:
            client.close()

    try:
        asyncio.run(run())
    except TandemError as error:
        return error.code
    return ""


def test_each_end_of_a_lease_has_its_answer(server: ClaimServer, leases: LeaseTable) -> None:
    held, cancelled = leases.grant("held", ()), leases.grant("cancelled", ())
    leases.cancel(["cancelled"])
    assert claim(server.address, held) == ""
    assert claim(server.address, held) == "handle_used"
    assert claim(server.address, cancelled) == "lease_cancelled"
    assert claim(server.address, 99) == "lease_unknown"
    assert claim(server.address, held, holder="prefill_0-0") == "handle_stale_epoch"
    assert leases.held == 0


def test_a_repeated_question_gets_the_same_answer(server: ClaimServer, leases: LeaseTable) -> None:
    """An answer may be lost on its way; the lease is the asker's all the same."""
    question = Confirm(correlation=5, lease_id=leases.grant("held", ()), holder=HOLDER)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.connect(server.address)
        for _ in range(2):
            socket.send_multipart([b"decode_0-1", seal_note(question, KEYS)])
            assert isinstance(open_note(socket.recv(), KEYS), Confirmed)
        socket.send_multipart([b"decode_1-1", seal_note(question, KEYS)])
        assert isinstance(open_note(socket.recv(), KEYS), NotConfirmed)
        socket.send_multipart([b"decode_0-1", seal_note(question, OTHER)])
        assert socket.recv() == b""
        socket.send(b"garbage")
        assert socket.recv() == b""


def test_without_the_key_a_lease_cannot_be_taken(
    server: ClaimServer, leases: LeaseTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "REPEAT_S", 0.05)
    lease = leases.grant("held", ())
    assert claim(server.address, lease, keys=OTHER, timeout_s=0.3) == "transfer_failed"
    assert leases.held == 1


def test_who_does_not_answer_fails_the_transfer() -> None:
    assert claim("tcp://127.0.0.1:1", 1, timeout_s=0.2) == "transfer_failed"
