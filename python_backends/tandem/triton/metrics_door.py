"""TLS before Triton's metrics, which know none: who shows a certificate of the deployment is let through."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tandem.deployment import Tls
from tandem.tls import server_context
from tandem.triton.command import LOOPBACK

MAX_GUESTS = 32
"""Connections at once."""
STAY_S = 60.0
"""Longest that one may last."""
HANDSHAKE_S = 5.0
STOP_S = 5.0
_PIECE = 1 << 16


class MetricsDoor:
    """Passes bytes between ``host:port``, under TLS, and ``port_inside`` on loopback, from a thread of its own."""

    def __init__(self, tls: Tls, host: str, port: int, port_inside: int) -> None:
        """Raises OSError where it cannot listen there."""
        self._inside = port_inside
        self._guests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="metrics-door", daemon=True)
        self._thread.start()
        opened = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._let_in, host, port, ssl=server_context(tls), ssl_handshake_timeout=HANDSHAKE_S),
            self._loop,
        )
        try:
            self._server = opened.result(STOP_S)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """No longer, for those inside either."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._end()

    def _end(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        self._loop.close()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._guests >= MAX_GUESTS:
            writer.close()
            return
        self._guests += 1
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(self._pass(reader, writer), STAY_S)
        finally:
            self._guests -= 1
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, self._inside)
        try:
            ways = [
                asyncio.ensure_future(_copy(reader, inner_writer)),
                asyncio.ensure_future(_copy(inner_reader, writer)),
            ]
            _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in pending:
                way.cancel()
        finally:
            inner_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PIECE):
            target.write(data)
            await target.drain()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
