"""What wakes a transfer thread: its own process by a bell, other processes of this host by a datagram.

Between hosts notes travel through NIXL, which has to be asked for them; on one host nobody has to look for anything, so
a worker that waits for answers, or for questions, leaves the cores to those who compute. Whoever writes to an inbox has
to know its token, which only paired workers are told.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
import weakref

import msgspec

from tandem.messages import TransferNote

_MAX_BYTES = 4096
_SHORT_S = 1e-3
"""poll(2) counts in milliseconds."""


class _Letter(msgspec.Struct, array_like=True):
    token: bytes
    sender: str
    note: TransferNote


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Letter)


class Inbox:
    """``wait`` and ``receive`` are for the thread that owns it, everything else for all threads."""

    def __init__(self, token: bytes | None) -> None:
        """``token`` is the memory's (``SharedMemory``); without one there is the bell alone."""
        self._token = token
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        if token is not None:
            self._socket.bind(_address(token))
            self._poll.register(self._socket, select.POLLIN)

    def ring(self) -> None:
        """End the present ``wait``, or else the next one."""
        os.eventfd_write(self._bell, 1)

    def wait(self, timeout_s: float | None) -> None:
        """Until something has come, or the time is over; None: however long it takes."""
        if timeout_s is not None and timeout_s < _SHORT_S:
            time.sleep(timeout_s)
        elif any(file == self._bell for file, _ in self._poll.poll(None if timeout_s is None else 1e3 * timeout_s)):
            os.eventfd_read(self._bell)

    def send(self, token: bytes, sender: str, note: TransferNote) -> bool:
        """Write to the inbox with this token; False where that cannot be done now."""
        try:
            self._socket.sendto(_encoder.encode(_Letter(token, sender, note)), _address(token))
        except OSError:  # it is gone, or full
            return False
        return True

    def receive(self) -> list[tuple[str, TransferNote]]:
        """All notes that have come, with the names of their senders."""
        notes: list[tuple[str, TransferNote]] = []
        while self._token is not None:
            try:
                letter = _decoder.decode(self._socket.recv(_MAX_BYTES))
            except BlockingIOError:
                break
            except msgspec.DecodeError:
                continue
            if letter.token == self._token:
                notes.append((letter.sender, letter.note))
        return notes


def _address(token: bytes) -> str:
    """In the abstract namespace, where nothing is left behind; it can be listed, so it does not give the token away."""
    return f"\0tandem-kv-{hashlib.blake2b(token, digest_size=16).hexdigest()}"
