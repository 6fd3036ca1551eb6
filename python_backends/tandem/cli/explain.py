"""``tandem explain``: which workers a prompt would get now, and why."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.table import Column, Table

from tandem.cli.client import Client
from tandem.cli.generate import prompt_inputs
from tandem.cli.terminal import count, output
from tandem.routing.explanation import ExplainedChoice, Explanation

_WHAT = {
    "prefill": "prefill",
    "decode": "decode",
    "generate": "both stages on one worker",
}


def explain(
    prompt: Annotated[str, typer.Argument(help="What would be asked; - reads it from standard input.")],
    url: Annotated[str, typer.Option(help="gRPC address of the server.")] = "127.0.0.1:8001",
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
) -> None:
    """Show which workers of a running server a prompt would get now, and what each would cost. Nothing is generated."""
    inputs = prompt_inputs(sys.stdin.read() if prompt == "-" else prompt, system, raw) | {"explain": True}
    if max_tokens is not None:
        inputs["max_tokens"] = max_tokens
    with Client(url) as client:
        text = "".join(response.get("text_output", "") for response in client.stream("llm", inputs))
    explanation = msgspec.json.decode(text, type=Explanation)
    way = "two workers" if explanation.way == "split" else "one worker"
    tokens = count(explanation.prompt_tokens, "prompt token")
    output.print(f"Policy {explanation.policy}, {tokens}: {way} ({explanation.reason})")
    for choice in explanation.choices:
        used = (choice.task == "generate") == (explanation.way == "whole")
        output.print(f"\n{_WHAT[choice.task]}: {choice.worker if used else 'not taken'} ({choice.reason})")
        if choice.task == "prefill" and used and explanation.lender:
            output.print(f"It borrows from {explanation.lender}, which holds {count(explanation.lent_tokens, 'token')}")
        output.print(table(choice))
    if explanation.keeper:
        output.print(f"\nThe {explanation.keeper} worker keeps the KV; the other one gives it up first")


def table(choice: ExplainedChoice) -> Table:
    """The candidates of one choice, the cheapest first, and what their costs are made of."""
    unit, scale = ("ms", 1e3) if choice.unit == "seconds" else (choice.unit, 1.0)
    result = Table(
        Column("worker", no_wrap=True),
        *(Column(name, justify="right") for name in ("cached", *choice.candidates[0].parts, f"cost, {unit}")),
        Column("", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for one in sorted(choice.candidates, key=lambda c: (c.cost, c.worker)):
        cached = "" if choice.task == "decode" else f"{one.cached_tokens:,}"
        figures = [f"{scale * value:,.1f}" for value in (*one.parts.values(), one.cost)]
        result.add_row(one.worker, cached, *figures, "◄" if one.worker == choice.worker else "")
    return result
