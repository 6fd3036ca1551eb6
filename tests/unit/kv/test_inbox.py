"""Inboxes: what wakes whom, and whose notes are taken."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tandem.kv.inbox import Inbox, _address
from tandem.messages import Confirm

HERE, THERE = b"a" * 16, b"b" * 16
NOTE = Confirm(correlation=1, lease_id=2, holder="decode_0-1")
DEADLINE_S = 30.0


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(HERE)


def test_a_note_arrives_with_its_sender(inbox: Inbox) -> None:
    assert Inbox(THERE).send(HERE, "decode_0-1", NOTE)
    inbox.wait(DEADLINE_S)
    assert inbox.receive() == [("decode_0-1", NOTE)]
    assert inbox.receive() == []


def test_a_note_ends_a_wait_without_end(inbox: Inbox) -> None:
    woken = threading.Thread(target=inbox.wait, args=(None,), daemon=True)
    woken.start()
    assert Inbox(None).send(HERE, "decode_0-1", NOTE)
    woken.join(DEADLINE_S)
    assert not woken.is_alive()


@pytest.mark.parametrize("token", [HERE, None])
def test_a_ring_before_the_wait_is_not_lost(token: bytes | None) -> None:
    inbox = Inbox(token)
    inbox.ring()
    inbox.ring()
    inbox.wait(DEADLINE_S)  # else this test takes as long
    began = time.monotonic()
    inbox.wait(0.01)
    assert time.monotonic() - began >= 0.01


def test_nobody_is_written_to_who_is_not_there(inbox: Inbox) -> None:
    assert not inbox.send(THERE, "decode_0-1", NOTE)


def test_a_full_inbox_says_so_and_keeps_what_it_has(inbox: Inbox) -> None:
    other = Inbox(THERE)
    sent = 0
    while sent < 100_000 and other.send(HERE, "decode_0-1", NOTE):
        sent += 1
    assert 0 < sent < 100_000
    assert len(inbox.receive()) == sent


def test_what_does_not_know_the_token_is_not_heard(inbox: Inbox) -> None:
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for data in (b"", b"nonsense", b"\x93" + b"\xc4\x10" + THERE + b"\xa1x\xc0"):
        stranger.sendto(data, _address(HERE))
    stranger.close()
    assert inbox.receive() == []
