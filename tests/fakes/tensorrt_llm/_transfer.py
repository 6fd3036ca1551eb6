"""KV on its way from a context engine to a generation engine, over TCP on the loopback: it can really be late or lost.

The opaque state says where the context engine listens. Who asks for KV that is not there (any more) gets no answer, as
with the real transceivers, and waits until its own timeout.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

import msgspec
from tensorrt_llm._faults import Faults
from tensorrt_llm._settings import number

_LENGTH = struct.Struct(">I")
_MAGIC = "fake-trtllm-kv"


class Opaque(msgspec.Struct, frozen=True, kw_only=True):
    """What the opaque state holds. Nobody but the library may look into it."""

    magic: str = _MAGIC
    port: int
    instance: str
    layout: tuple[str, int, str]
    """Version, tokens per block, dtype: what has to be equal on both sides."""


class Kv(msgspec.Struct, frozen=True, kw_only=True):
    """What moves: the state after the prompt stands for its KV. ``error``: there is no KV."""

    state: bytes = b""
    num_tokens: int = 0
    error: str = ""


def encode_opaque(opaque: Opaque) -> bytes:
    return msgspec.msgpack.encode(opaque)


class KvServer:
    """A context engine's end: KV by request id, each to be fetched once."""

    def __init__(
        self, layout: tuple[str, int, str], max_tokens: int | None, faults: Faults, sent: Callable[[int], None]
    ) -> None:
        self._max_tokens = max_tokens
        self._offers: dict[int, Kv] = {}
        self._lock = Lock()
        self._ended = Event()
        self._faults = faults
        self._sent = sent
        owner = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                owner._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.opaque = encode_opaque(
            Opaque(port=self._server.server_address[1], instance=f"{os.getpid()}-{id(self)}", layout=layout)
        )
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True, name="fake-kv").start()

    def offer(self, request_id: int, kv: Kv) -> None:
        with self._lock:
            self._offers[request_id] = kv

    def withdraw(self, request_id: int) -> bool:
        """Take it back; False: it is gone already."""
        with self._lock:
            return self._offers.pop(request_id, None) is not None

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            request_id = msgspec.msgpack.decode(_receive(connection), type=int)
            if self._faults.strikes("transfer_refused"):
                _send(connection, msgspec.msgpack.encode(Kv(error="the transceiver's buffer is too small")))
                return
            with self._lock:
                kv = None if self._faults.strikes("transfer_lost") else self._offers.get(request_id)
            if kv is not None and self._max_tokens is not None and kv.num_tokens > self._max_tokens:
                kv = Kv(error="the prompt is longer than max_tokens_in_buffer")
            if kv is None:
                self._wait_for_goodbye(connection)
                return
            time.sleep(number("TRANSFER_MS", 0) / 1000)
            if self.withdraw(request_id):
                self._sent(request_id)  # before the other side can act on it
                _send(connection, msgspec.msgpack.encode(kv))
        except OSError:
            pass  # the other side gave up

    def _wait_for_goodbye(self, connection: socket.socket) -> None:
        connection.settimeout(0.1)
        while not self._ended.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue


class Fetch:
    """A generation engine's end of one transfer, in a thread of its own."""

    def __init__(self, opaque: bytes, request_id: int, layout: tuple[str, int, str], done: Callable[[], None]) -> None:
        self.kv: Kv | None = None
        self.error = ""
        self._opaque = opaque
        self._request_id = request_id
        self._layout = layout
        self._done = done
        self._connection: socket.socket | None = None
        Thread(target=self._run, daemon=True, name=f"fake-fetch-{request_id}").start()

    @property
    def ended(self) -> bool:
        return self.kv is not None or bool(self.error)

    def give_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self) -> None:
        try:
            where = msgspec.msgpack.decode(self._opaque, type=Opaque)
            if where.magic != _MAGIC or where.layout != self._layout:
                raise ValueError(f"KV layout {where.layout} does not fit {self._layout}")
            with socket.create_connection(("127.0.0.1", where.port), timeout=5) as self._connection:
                self._connection.settimeout(None)
                _send(self._connection, msgspec.msgpack.encode(self._request_id))
                kv = msgspec.msgpack.decode(_receive(self._connection), type=Kv)
            if kv.error:
                raise ValueError(kv.error)
            self.kv = kv
        except (OSError, ValueError) as error:
            self.error = str(error) or type(error).__name__
        self._done()


def _send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the other side closed the connection")
        data += part
    return data
