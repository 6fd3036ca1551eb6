"""``tandem serve``: a deployment, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel

from tandem.cli.terminal import Interrupted, errors, output, showing_progress
from tandem.deployment import load_deployment, override, split_parts
from tandem.errors import TandemError
from tandem.triton.outline import outline, the_image, this_machine
from tandem.triton.server import TritonServer
from tandem.triton.server_log import ServerLog

PortOption = typer.Option(min=0, max=65535, help="Instead of the deployment's; 0 picks a free one.")


def serve(
    deployment: Annotated[Path, typer.Argument(help="The deployment file, e.g. deployments/local.toml.")],
    http_port: Annotated[int | None, PortOption] = None,
    grpc_port: Annotated[int | None, PortOption] = None,
    metrics_port: Annotated[int | None, PortOption] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="What of the deployment runs here: gateway and names of workers, with commas between; "
            "the gateway and all workers without an address when left out."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and where.")] = False,
    for_image: Annotated[
        bool, typer.Option("--for-image", help="With --dry-run: in build/docker/tensorrt_llm.Dockerfile's image.")
    ] = False,
) -> None:
    """Serve a deployment, or a part of it, until Ctrl-C."""
    plan = override(
        load_deployment(deployment),
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        host=host,
        only=split_parts(only),
    )
    if dry_run:
        typer.echo(outline(plan, the_image() if for_image else this_machine()), nl=False)
        return
    try:
        with contextlib.ExitStack() as stack:
            with showing_progress("Starting") as progress:
                server = stack.enter_context(TritonServer(plan, progress=progress))
            stack.callback(errors.print, "Stopping …")
            output.print(_panel(server))
            if plan.has_gateway:
                output.print(_examples(server), markup=False, soft_wrap=True)
            status = server.wait()
            raise TandemError("engine_failed", ServerLog(server.log_file).why_ended(status))
    except Interrupted:
        return  # the way to end it


def _panel(server: TritonServer) -> Panel:
    """What somebody needs to know who wants to use the server."""
    here = server.deployment.workers_here
    workers = ", ".join(f"{w.name} ({w.engine}, {', '.join(w.devices)})" for w in here)
    elsewhere = ", ".join(f"{w.name} at {', '.join(w.addresses)}" for w in server.deployment.worker if w not in here)
    lines = [
        f"HTTP     {server.http_url}",
        f"gRPC     {server.grpc_url}",
        f"Metrics  {server.metrics_url}",
        f"Workers  {workers or 'none here'}",
        *([f"Others   {elsewhere}"] if elsewhere and server.deployment.has_gateway else []),
        f"Model    {server.deployment.model.path} ({server.deployment.model.dtype})",
        f"Logs     {server.log_file.parent}",
    ]
    return Panel("\n".join(lines), title=f"Tandem: {server.deployment.name} is ready", expand=False, title_align="left")


def _examples(server: TritonServer) -> str:
    """Commands to copy; outside the panel, whose border would come along."""
    program = Path(sys.argv[0])
    tandem = os.path.relpath(program) if program.is_absolute() else str(program)
    body = '{"text_input": "The capital of France is", "max_tokens": 32, "stream": true}'
    return (
        f"\n{tandem} generate 'Why is the sky blue?' --url {server.grpc_url}\n"
        f"{tandem} status --url {server.grpc_url}\n"
        f"curl -N {server.http_url}/v2/models/llm/generate_stream -d '{body}'\n\n"
        "Ctrl-C ends it."
    )
