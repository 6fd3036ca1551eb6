"""A load client as a process of its own: a ``Job`` as JSON on stdin, a ``Outcome`` as JSON on stdout.

So its CPU time can be told apart from that of whoever measures, and neither waits for the other.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))  # it is also run as a script

from live.events import Event, to_grpc_request, to_json_body
from live.grpc_stream import GrpcClient
from live.http_stream import HttpConnection
from live.record import Record, Recording

TIMEOUT_S = 300.0
"""For one request."""

Ask = Callable[[Callable[[Event], None]], Awaitable[None]]
"""Sends one request and returns when its stream has ended."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A number of equal requests, so many at once."""

    protocol: Literal["http", "grpc"]
    http_url: str
    grpc_url: str
    inputs: dict[str, Any]
    at_once: int
    requests: int
    model: str = "llm"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it."""

    seconds: float
    """From the first request to the end of the last; connections were open before."""
    records: list[Record]
    cpu_s: float
    """Of the client, in these seconds."""
    messages: int
    """Responses that came."""


async def drive(job: Job) -> Outcome:
    """Send all requests, each of ``at_once`` clients one after the other."""
    numbers = iter(range(job.requests))
    records: list[Record] = []
    messages = 0

    async def client(ask: Ask, began: float) -> None:
        nonlocal messages
        for _ in numbers:
            now = time.perf_counter() - began
            recording = Recording(job.protocol, now, now)

            def take(event: Event, recording: Recording = recording) -> None:
                nonlocal messages
                messages += 1
                recording.take(event, time.perf_counter() - began)

            error = ""
            try:
                await ask(take)
            except Exception as failure:  # whatever a client may meet is a figure of the load test
                error = f"{type(failure).__name__}: {failure}"
            records.append(recording.end(time.perf_counter() - began, error=error))

    asks, close = await _connect(job)
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(ask, began) for ask in asks))
    outcome = Outcome(
        seconds=time.perf_counter() - began,
        records=records,
        cpu_s=time.process_time() - cpu,
        messages=messages,
    )
    await close()
    return outcome


async def _connect(job: Job) -> tuple[list[Ask], Callable[[], Awaitable[None]]]:
    """What sends a request, for each client, and what closes them all."""
    if job.protocol == "grpc":
        grpc_client = GrpcClient(job.grpc_url)
        request = to_grpc_request(job.model, job.inputs)
        send: Ask = lambda take: grpc_client.ask(request, take, TIMEOUT_S)  # noqa: E731
        return [send] * job.at_once, partial(grpc_client.__aexit__, None, None, None)
    url, body = urlsplit(job.http_url), to_json_body(job.inputs)
    assert url.hostname is not None
    assert url.port is not None
    connections = [await HttpConnection.open(url.hostname, url.port, job.model) for _ in range(job.at_once)]

    async def close() -> None:
        for connection in connections:
            connection.close()

    return [partial(_ask_http, connection, body) for connection in connections], close


async def _ask_http(connection: HttpConnection, body: bytes, take: Callable[[Event], None]) -> None:
    await connection.ask(body, take, TIMEOUT_S)


def run_client(job: Job, timeout_s: float = 600.0) -> Outcome:
    """Drive a job in a process of its own, which ends with this call.

    Raises:
        RuntimeError: the client failed; the text is its own.
        subprocess.TimeoutExpired: it did not end in time.
    """
    done = subprocess.run(
        [sys.executable, __file__], input=msgspec.json.encode(job), capture_output=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the load client ended with status {done.returncode}:\n{done.stderr.decode()[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Outcome)


if __name__ == "__main__":
    result = asyncio.run(drive(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
    sys.stdout.buffer.write(msgspec.json.encode(result))
