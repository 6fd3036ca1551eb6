"""``tandem status``: workers, load and KV use of a running server."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Column, Table

from tandem.cli.client import Client
from tandem.cli.terminal import output, size
from tandem.errors import TandemError
from tandem.messages import Hello, HelloReply, LaneReply, Refused

SILENCE_S = 5.0
"""An engine gives a sign of life twice a second."""


def status(
    url: Annotated[str, typer.Option(help="gRPC address of the server.")] = "127.0.0.1:8001",
) -> None:
    """Show the workers of a running server, their load and their KV cache. Fails where no worker can take a request."""
    with Client(url) as client:
        models = client.models()
        workers = [name for name, state in models.items() if state == "READY" and client.is_worker(name)]
        table = Table(
            *(Column(name, no_wrap=True) for name in ("worker", "stage", "engine")),
            *(Column(name, justify="right") for name in ("queued", "running", "KV blocks", "use", "handles", "pulled")),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        replies = {worker: _greet(client, worker) for worker in sorted(workers)}
        for worker, reply in replies.items():
            table.add_row(*_row(worker, reply))
    ready = sorted(name for name, state in models.items() if state == "READY" and name not in workers)
    missing = sorted(name for name, state in models.items() if state != "READY")
    output.print(f"Server {url}: {', '.join(ready)} ready")
    output.print(table)
    if missing:
        raise TandemError("engine_failed", f"not ready: {', '.join(f'{name} ({models[name]})' for name in missing)}")
    if all(_problem(reply) for reply in replies.values()):
        raise TandemError("worker_lost", "no worker can take a request")


def _greet(client: Client, worker: str) -> LaneReply:
    """Who the worker is and how it does, or why it does not say."""
    try:
        return client.call(worker, Hello())
    except TandemError as error:
        return Refused(code=error.code, message=error.message)


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
        return [worker, f"[red]{problem}[/red]"]
    assert isinstance(reply, HelloReply)
    who, load = reply.worker, reply.load
    share = load.blocks_used / load.blocks_total if load.blocks_total else 0.0
    return [
        worker,
        who.stage,
        who.engine,
        f"{load.queued:,}",
        f"{load.running:,}/{who.max_batch_size:,}",
        f"{load.blocks_used:,}/{load.blocks_total:,}",
        f"{share:.0%}",
        f"{load.handles_held:,}",
        size(load.bytes_pulled),
    ]
