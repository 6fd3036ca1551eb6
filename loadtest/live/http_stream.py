"""A lean HTTP client for ``generate_stream``, so that load costs little: one request at a time on a kept connection.

Reads what Triton's HTTP server sends: chunked server-sent events, or an error with a length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from live.events import Event, decode_json

_HEAD_END, _EVENT_END = b"\r\n\r\n", b"\n\n"
_DATA = b"data:"


class HttpError(Exception):
    """The connection ended, or what came is no answer; the text says which."""


class HttpConnection(asyncio.Protocol):
    """One connection. ``await HttpConnection.open(...)``, then ``ask`` as often as wanted, then ``close``."""

    def __init__(self, host: str, path: str) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: ".encode()
        )
        self._received = bytearray()
        self._text = bytearray()
        """Of the body, what is no whole event yet."""
        self._length: int | None = None
        """Of the body, where it is not chunked."""
        self._in_body = False
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, host: str, port: int, model: str) -> HttpConnection:
        """Connect."""
        path = f"/v2/models/{model}/generate_stream"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(f"{host}:{port}", path), host, port
        )
        return connection

    async def ask(self, body: bytes, on_event: Callable[[Event], None], timeout_s: float) -> None:
        """Send a request and wait for the end of its stream; ``on_event`` hears each response as it comes.

        Raises:
            HttpError: the connection ended before the stream did.
            asyncio.TimeoutError: nothing ended within ``timeout_s``.
        """
        if self._transport.is_closing():
            raise HttpError("the server has closed the connection")
        self._on_event = on_event
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        await asyncio.wait_for(self._done, timeout_s)

    def close(self) -> None:
        """Leave; a stream that runs is dropped."""
        self._transport.abort()

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(
                HttpError(f"the connection ended within a stream: {exc or 'closed by the server'}")
            )

    def data_received(self, data: bytes) -> None:
        """Bytes came: as much is read as is whole."""
        self._received += data
        if not self._in_body and not self._read_head():
            return
        ended = self._read_chunks() if self._length is None else self._read_plain(self._length)
        self._read_events(all_is_there=ended)
        if ended:
            self._in_body = False
            self._text.clear()
            if self._done is not None and not self._done.done():
                self._done.set_result(None)

    # ------------------------------------------------------------ reading

    def _read_head(self) -> bool:
        """Status and headers; whether they are whole."""
        end = self._received.find(_HEAD_END)
        if end < 0:
            return False
        lines = bytes(self._received[:end]).lower().split(b"\r\n")
        headers = dict(line.partition(b":")[::2] for line in lines[1:])
        length = headers.get(b"content-length")
        self._length = None if length is None else int(length)
        del self._received[: end + len(_HEAD_END)]
        self._in_body = True
        return True

    def _read_chunks(self) -> bool:
        """Whole chunks of the body; whether the last one was among them."""
        received = self._received
        at = 0
        ended = False
        while (line := received.find(b"\r\n", at)) >= 0:
            size = int(received[at:line], 16)
            stop = line + 2 + size + 2
            if stop > len(received):
                break
            self._text += received[line + 2 : stop - 2]
            at = stop
            if size == 0:
                ended = True
                break
        del received[:at]
        return ended

    def _read_plain(self, length: int) -> bool:
        """A body of known length; whether all of it is there."""
        if len(self._received) < length:
            return False
        self._text += self._received[:length]
        del self._received[:length]
        return True

    def _read_events(self, *, all_is_there: bool) -> None:
        """Hand over what is whole. An error may stand there without the marks of an event."""
        *whole, rest = self._text.split(_EVENT_END)
        if all_is_there and rest.strip():
            whole.append(rest)
            rest = bytearray()
        self._text = rest
        for event in whole:
            self._on_event(decode_json(event.strip().removeprefix(_DATA)))
