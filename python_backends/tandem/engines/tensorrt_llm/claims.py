"""Decode asks prefill whether a lease holds, and thereby takes it: before the library is given what the handle holds.

    decode ── redeemer, Confirm, MAC ──► prefill      REQ and REP, once for each handle, repeated until the deadline
           ◄── Confirmed | NotConfirmed, MAC ──

The library moves KV by itself and tells nobody when it was fetched, so a lease ends with its claim, before the transfer
and not after it. What it guards itself comes on top: a request id that it does not hold gets no KV.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading

import msgspec
import zmq
import zmq.asyncio

from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.kv.confirmations import Confirmations
from tandem.kv.leases import LeaseTable
from tandem.messages import Confirm, Confirmed, NotConfirmed, TransferNote, decoder, encode

log = logging.getLogger(__name__)

POLL_MS = 100
REPEAT_S = 1.0
MAC_BYTES = 32
_note_decoder: msgspec.msgpack.Decoder[TransferNote] = decoder(TransferNote)
_correlations = itertools.count(1)


class ClaimServer:
    """A prefill worker's end: one thread that answers."""

    def __init__(self, holder: str, leases: LeaseTable, keys: Keys, host: str) -> None:
        """``holder`` names this worker in this epoch. Listens on a free port of ``host`` from now on."""
        self._confirmations = Confirmations(holder, leases)
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = f"tcp://{host}:{port}"
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the port."""
        self._stopping = True
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while not self._stopping:
            if self._socket.poll(POLL_MS):
                self._socket.send(self._answer(self._socket.recv_multipart()))

    def _answer(self, parts: list[bytes]) -> bytes:
        """Nothing to what was not made with the deployment's key."""
        try:
            redeemer, sealed = parts
            question = open_note(sealed, self._keys)
        except ValueError as error:
            log.warning("dropped a claim: %s", error)
            return b""
        if not isinstance(question, Confirm):
            return b""
        return seal_note(self._confirmations.answer(redeemer.decode(errors="replace"), question), self._keys)


class ClaimClient:
    """A decode worker's end. Used in one event loop."""

    def __init__(self, redeemer: str, keys: Keys, timeout_s: float) -> None:
        """``redeemer`` names this worker in this epoch."""
        self._redeemer, self._keys, self._timeout_s = redeemer.encode(), keys, timeout_s
        self._context = zmq.asyncio.Context()

    async def claim(self, address: str, holder: str, lease_id: int) -> None:
        """Take a lease.

        Raises:
            TandemError: ``handle_used``, ``lease_cancelled``, ``lease_expired``, ``lease_unknown`` or
                ``handle_stale_epoch``, as prefill answers; ``transfer_failed``: it does not.
        """
        question = Confirm(correlation=next(_correlations), lease_id=lease_id, holder=holder)
        try:
            answer = await asyncio.wait_for(self._ask(address, question), self._timeout_s)
        except asyncio.TimeoutError:
            raise TandemError(
                "transfer_failed",
                f"prefill ({holder}, {address}) did not answer within {self._timeout_s:g} s whether lease {lease_id} "
                "holds (kv.transfer_timeout_s)",
            ) from None
        if isinstance(answer, NotConfirmed):
            raise TandemError(answer.code, answer.message)

    def close(self) -> None:
        """Drop what has not been answered."""
        self._context.destroy(linger=0)

    async def _ask(self, address: str, question: Confirm) -> Confirmed | NotConfirmed:
        """Ask, again and again; prefill answers repetitions as it did the first time."""
        while True:
            with self._context.socket(zmq.REQ) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(address)
                await socket.send_multipart([self._redeemer, seal_note(question, self._keys)])
                if await socket.poll(int(1000 * REPEAT_S)):
                    with contextlib.suppress(ValueError):
                        answer = open_note(await socket.recv(), self._keys)
                        if isinstance(answer, Confirmed | NotConfirmed) and answer.correlation == question.correlation:
                            return answer
                    await asyncio.sleep(REPEAT_S)


def seal_note(note: TransferNote, keys: Keys) -> bytes:
    """A note that nobody without one of ``keys`` can make."""
    payload = encode(note)
    return keys.sign(payload) + payload


def open_note(sealed: bytes, keys: Keys) -> TransferNote:
    """What ``seal_note`` made with the same key.

    Raises:
        ValueError: it was not.
    """
    mac, payload = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
    if not keys.verify(payload, mac):
        raise ValueError("its signature does not fit")
    return _note_decoder.decode(payload)
