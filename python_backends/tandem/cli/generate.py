"""``tandem generate``: one answer, streamed to the terminal, then one line of facts about it."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tandem.cli.client import Client
from tandem.cli.terminal import count, errors, showing_progress, size
from tandem.deployment import load_deployment, override
from tandem.errors import TandemError
from tandem.triton.home import project_root
from tandem.triton.server import TritonServer

Facts = dict[str, Any]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    url: Annotated[str | None, typer.Option(help="gRPC address of a running server, e.g. 127.0.0.1:8001.")] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="Without --url: start this deployment for the one answer.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Fewest tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    presence_penalty: Annotated[float | None, typer.Option()] = None,
    frequency_penalty: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")] = None,
    stop_word: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the text.")] = False,
) -> None:
    """Ask one question and stream the answer; starts a server of its own unless --url names one."""
    options = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop_words": stop_word or None,
        "ignore_eos": ignore_eos or None,
    }
    inputs = prompt_inputs(sys.stdin.read() if prompt == "-" else prompt, system, raw)
    inputs |= {name: value for name, value in options.items() if value is not None}
    if url is not None:
        if deployment is not None:
            raise TandemError("invalid_request", "--url and --deployment exclude each other: give one")
        _answer(url, inputs)
        return
    plan = load_deployment(deployment or project_root() / "deployments" / "local.toml")
    with contextlib.ExitStack() as stack:
        with showing_progress("Starting a server") as progress:
            server = TritonServer(override(plan, http_port=0, grpc_port=0, metrics_port=0), progress=progress)
            stack.enter_context(server)
        _answer(server.grpc_url, inputs)


def prompt_inputs(prompt: str, system: str | None, raw: bool) -> dict[str, Any]:
    """The input that carries the prompt: a conversation, or with ``raw`` the bare text."""
    if raw:
        if system is not None:
            raise TandemError("invalid_request", "--system needs the chat template that --raw leaves out")
        return {"text_input": prompt}
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": json.dumps(messages)}


def _answer(url: str, inputs: dict[str, Any]) -> None:
    """Stream the answer to standard output, then the facts to standard error."""
    facts: Facts = {}
    with Client(url) as client:
        try:
            for response in client.stream("llm", inputs | {"stream": True}):
                facts |= response
                if piece := response.get("text_output"):
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            if facts:
                sys.stdout.write("\n")
    errors.print(summary(facts), style="dim", markup=False, soft_wrap=True)


def summary(facts: Facts) -> str:
    """All that the final response says about an answer, in one line."""
    path = " → ".join(dict.fromkeys(w for w in (facts["prefill_worker"], facts["decode_worker"]) if w))
    moved = "no KV moved"
    if facts["kv_bytes"]:
        moved = f"{size(facts['kv_bytes'])} KV moved in {facts['kv_transfer_ms']:.1f} ms"
    parts = [
        f"finished: {facts['finish_reason']}",
        f"{count(facts['num_input_tokens'], 'prompt token')} ({facts['num_cached_tokens']} cached)",
        f"{facts['num_output_tokens']:,} generated",
        f"first after {facts['ttft_ms']:.0f} ms",
        path,
        moved,
    ]
    return " · ".join(parts)
