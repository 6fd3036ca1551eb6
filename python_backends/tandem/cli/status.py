"""``tandem status``: workers, load and KV use of a running server, or of a deployment wherever its workers are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from tandem.cli.client import Client, find_keys
from tandem.cli.terminal import output, size
from tandem.deployment import Tls, load_deployment
from tandem.errors import TandemError
from tandem.lanes.discovery import addresses_of
from tandem.lanes.grpc import GrpcTransport
from tandem.lanes.replica import Replica
from tandem.messages import Hello, HelloReply, LaneReply, Refused

SILENCE_S = 5.0
"""An engine gives a sign of life twice a second."""
_GATEWAY = ("ensemble", "llm", "preprocess")
_Asked = tuple[str, str, str, Tls | None]
"""What an orchestrator calls a worker, its model, where that is, and how to get in."""


def status(
    deployment: Annotated[
        Path | None, typer.Argument(help="Show the workers of this deployment at all their addresses, too.")
    ] = None,
    url: Annotated[str, typer.Option(help="gRPC address of the server.")] = "127.0.0.1:8001",
) -> None:
    """Show the workers of a running server, their load and their KV cache. Fails where no worker can take a request."""
    with Client(url) as client:
        models = _models(client)
        workers = [name for name, state in models.items() if state == "READY" and client.is_worker(name)]
    asked: list[_Asked] = [(name, name, url, None) for name in sorted(workers)]
    if deployment is not None:
        asked += _elsewhere(deployment)
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        replies = list(pool.map(_greet, asked))
    ready = sorted(name for name, state in models.items() if state == "READY" and name not in workers)
    missing = sorted(name for name, state in models.items() if state != "READY")
    output.print(f"Server {url}: {', '.join(ready) or 'no gateway'} ready")
    output.print(_table([_row(name, reply) for (name, *_), reply in zip(asked, replies, strict=True)]))
    if missing:
        raise TandemError("engine_failed", f"not ready: {', '.join(f'{name} ({models[name]})' for name in missing)}")
    if all(_problem(reply) for reply in replies):
        raise TandemError("worker_lost", "no worker can take a request")


def _models(client: Client) -> dict[str, str]:
    """Name → state; the gateway's alone, where the server was started with a handle key that is not known any more."""
    try:
        return client.models()
    except TandemError as error:
        if error.code != "forbidden" or not client.is_ready("llm"):
            raise
        return {name: "READY" for name in _GATEWAY if client.is_ready(name)}


def _elsewhere(file: Path) -> list[_Asked]:
    """The workers that have addresses: what an orchestrator calls them, their models, and where these are."""
    deployment = load_deployment(file)
    entries = [worker for worker in deployment.worker if worker.addresses]
    try:
        replicas = [Replica(worker, address) for worker in entries for address in sorted(addresses_of(worker))]
    except OSError as error:
        raise TandemError("environment", f"the addresses of workers cannot be found: {error}") from error
    return [(replica.name, replica.worker.name, str(replica.address), deployment.tls) for replica in replicas]


def _greet(asked: _Asked) -> LaneReply:
    """Who a worker is and how it does, or why it does not say."""
    name, model, address, tls = asked
    transport = GrpcTransport(model, address, name, find_keys(), tls)
    try:
        return transport.call(Hello())
    except TandemError as error:
        return Refused(code=error.code, message=error.message)
    finally:
        transport.close()


def _table(rows: list[list[str]]) -> Table:
    table = Table(
        *(Column(name, no_wrap=True) for name in ("worker", "stage", "engine")),
        *(Column(name, justify="right") for name in ("queued", "running", "KV blocks", "use", "handles", "pulled")),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*row)
    return table


def _problem(reply: LaneReply) -> str | None:
    """Why a worker cannot take a request; None if it can."""
    if isinstance(reply, Refused):
        return reply.message
    if not isinstance(reply, HelloReply):
        return f"unexpected reply: {type(reply).__name__}"
    silent_s = reply.load.silent_s
    return f"its engine has given no sign of life for {silent_s:.0f} s" if silent_s > SILENCE_S else None


def _row(worker: str, reply: LaneReply) -> list[str]:
    if (problem := _problem(reply)) is not None:
        return [worker, f"[red]{escape(problem)}[/red]"]
    assert isinstance(reply, HelloReply)
    who, load = reply.worker, reply.load
    share = load.blocks_used / load.blocks_total if load.blocks_total else 0.0
    return [
        worker,
        f"{who.stage}, drains" if reply.draining else who.stage,
        who.engine,
        f"{load.queued:,}",
        f"{load.running:,}/{who.max_batch_size:,}",
        f"{load.blocks_used:,}/{load.blocks_total:,}",
        f"{share:.0%}",
        f"{load.handles_held:,}",
        size(load.bytes_pulled),
    ]
