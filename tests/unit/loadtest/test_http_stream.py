"""The lean HTTP client reads what Triton sends, however it is cut into packets."""

from __future__ import annotations

import asyncio

import pytest
from live.events import Event
from live.http_stream import HttpConnection, HttpError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [b'data: {"model_name":"llm","output_ids":7,"text_output":"\xc3\xa9"}\n\n', b'data: {"output_ids":[8,9]}\n\n']
STREAM = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"
ERROR = b'{"error":"[overloaded] no"}'
REFUSALS = [
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(ERROR), ERROR),
    b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\ndata: %s\n\n\r\n0\r\n\r\n"
    % (len(ERROR) + 8, ERROR),
    b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(ERROR), ERROR),
]


async def _ask(packets: list[bytes], times: int = 1, *, close: bool = False) -> list[Event]:
    """What the client hears of a server that answers each request with these packets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            assert (head.split()[1], body) == (b"/v2/models/llm/generate_stream", b"{}")
            for packet in packets:
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(0)
        if not close:
            await reader.read()
        writer.close()

    heard: list[Event] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        connection = await HttpConnection.open("127.0.0.1", server.sockets[0].getsockname()[1], "llm")
        try:
            for _ in range(times):
                await connection.ask(b"{}", heard.append, timeout_s=10)
        finally:
            connection.close()
    return heard


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_stream_in_packets_of_any_size(size: int) -> None:
    packets = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    first, second = asyncio.run(_ask(packets))
    assert (first.text_output, first.num_tokens, second.output_ids) == ("é", 1, [8, 9])


def test_a_connection_is_used_again() -> None:
    assert len(asyncio.run(_ask([STREAM], times=3))) == 6


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal(refusal: bytes) -> None:
    (event,) = asyncio.run(_ask([refusal]))
    assert event.error == "[overloaded] no"


def test_a_connection_that_breaks() -> None:
    with pytest.raises(HttpError, match="the connection ended within a stream"):
        asyncio.run(_ask([STREAM[:-20]], close=True))
