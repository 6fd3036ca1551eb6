"""What the whole path costs where the engines take no time: ``make overhead``.

One prefill and one decode worker of the engine ``sim`` with the profile ``instant`` behind a live server. Prints what a
request takes at 1, 32 and 256 at once, the tokens delivered with 32 streams, and the CPU time of each process; writes
``.tandem/overhead.json``, which ``compare.py`` reads. Client and server share the machine.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from live.drive import Job, Outcome, run_client
from live.engines import find_engine
from live.fleet import MODEL, ROOT, sim_deployment
from live.resources import Processes, cpu_between
from live.rounds import Figure
from live.stats import summarise
from rich.console import Console
from rich.table import Table

from tandem.deployment import Routing
from tandem.engines.sim.engine import read_vocab_size
from tandem.triton.server import TritonServer

AT_ONCE = {1: 200, 32: 2000, 256: 2000}
"""Requests at once: how many in all."""
CPU_AT = 32
"""CPU time per request is told of this many at once."""
STREAMS, STREAM_TOKENS, STREAM_REQUESTS = 32, 400, 256
CLIENT = "client"
REFERENCE = "Dynamo 1.6.1 with its mocker, on a machine of two cores like this one"
REFERENCES = {
    "request p50, 1 at once": 48.0,
    "requests/s, 32 at once": 428.0,
    "request p50, 32 at once": 68.0,
    f"tokens/s, {STREAMS} streams": 59_000.0,
}
"""Of ``REFERENCE``: ms, or per second; streams of as many tokens."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent."""

    protocol: Literal["http", "grpc"]
    rounds: int
    prompt_tokens: int
    tokens: int
    """Of the answers of single requests; streams have ``STREAM_TOKENS``."""


class OverheadReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one run."""

    title: str
    settings: Settings
    figures: list[Figure]
    reference: str = REFERENCE


class Tally:
    """Figures by name, a value for each round."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def add(self, name: str, unit: str, value: float, *, more_is_better: bool = False) -> None:
        """One round's value."""
        new = Figure(name=name, unit=unit, more_is_better=more_is_better, values=[], reference=REFERENCES.get(name))
        self.figures.setdefault(name, new).values.append(value)


class Bench:
    """A running server and what is measured on it."""

    def __init__(self, server: TritonServer, settings: Settings) -> None:
        self._server, self._settings = server, settings
        self._processes = Processes(server.pid)
        self._vocab_size = read_vocab_size(MODEL)
        self._draw = random.Random(1)

    def run(self, at_once: int, requests: int, tokens: int) -> tuple[Outcome, dict[str, float]]:
        """Send requests; what became of them, and the CPU seconds of each role.

        Raises:
            SystemExit: an answer is not whole: such a run says nothing.
        """
        prompt = [self._draw.randrange(self._vocab_size) for _ in range(self._settings.prompt_tokens)]
        inputs = {"input_ids": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "seed": 1}
        job = Job(
            protocol=self._settings.protocol,
            http_url=self._server.http_url,
            grpc_url=self._server.grpc_url,
            inputs=inputs,
            at_once=at_once,
            requests=requests,
        )
        before = self._processes.use()
        outcome = run_client(job)
        cpu = cpu_between(before, self._processes.use())
        if wrong := next((r for r in outcome.records if r.error or r.tokens != tokens), None):
            raise SystemExit(f"a request at {at_once} at once: {wrong.tokens} of {tokens} tokens; {wrong.error}")
        return outcome, {**cpu, CLIENT: outcome.cpu_s}


def measure_round(bench: Bench, tally: Tally, tokens: int) -> None:
    """All workloads once."""
    for at_once, requests in AT_ONCE.items():
        outcome, cpu = bench.run(at_once, requests, tokens)
        times = summarise(record.seconds for record in outcome.records)
        place = f"{at_once} at once"
        tally.add(f"request p50, {place}", "ms", 1e3 * times.p50)
        tally.add(f"request p99, {place}", "ms", 1e3 * times.p99)
        tally.add(f"requests/s, {place}", "1/s", requests / outcome.seconds, more_is_better=True)
        if at_once == CPU_AT:
            _add_cpu(tally, cpu, "1,000 requests", 1000 / requests)
    outcome, cpu = bench.run(STREAMS, STREAM_REQUESTS, STREAM_TOKENS)
    delivered = STREAM_REQUESTS * STREAM_TOKENS
    tally.add(f"tokens/s, {STREAMS} streams", "1/s", delivered / outcome.seconds, more_is_better=True)
    tally.add("tokens a message", "", delivered / outcome.messages, more_is_better=True)
    _add_cpu(tally, cpu, "100,000 tokens", 100_000 / delivered)


def _add_cpu(tally: Tally, cpu: dict[str, float], per: str, scale: float) -> None:
    """CPU seconds of each role, of all, and the client's share of them."""
    total = sum(cpu.values())
    for role, seconds in cpu.items():
        if seconds * scale >= 0.005:
            tally.add(f"CPU for {per}, {role}", "s", seconds * scale)
    tally.add(f"CPU for {per}, all", "s", total * scale)
    tally.add(f"client's share of CPU, {per}", "%", 100 * cpu[CLIENT] / total)


def show(report: OverheadReport, console: Console) -> None:
    """Print the table."""
    settings = report.settings
    table = Table(
        title=f"{report.title}: {settings.protocol}, prompts of {settings.prompt_tokens} and answers of "
        f"{settings.tokens} tokens, streams of {STREAM_TOKENS}; median of {settings.rounds} round(s)",
        caption=f"reference: {report.reference}",
    )
    for heading in ("", "unit", "median", "± spread", "reference"):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right")
    for figure in report.figures:
        reference = "" if figure.reference is None else f"{figure.reference:,.0f}"
        table.add_row(figure.name, figure.unit, f"{figure.median:,.2f}", f"{figure.spread:,.2f}", reference)
    console.print(table)


def main(
    rounds: Annotated[int, typer.Option(help="How often everything is measured, after one round that warms up.")] = 5,
    protocol: Annotated[Literal["http", "grpc"], typer.Option(help="What the client speaks.")] = "http",
    prompt_tokens: Annotated[int, typer.Option(help="Of each prompt.")] = 64,
    tokens: Annotated[int, typer.Option(help="Of each answer; the streams have 400.")] = 16,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "overhead.json",
) -> None:
    """Start the server, measure, report."""
    console = Console(width=max(120, Console().width))
    settings = Settings(protocol=protocol, rounds=rounds, prompt_tokens=prompt_tokens, tokens=tokens)
    # Always taken apart: short prompts would otherwise go to one worker whole.
    routing = msgspec.convert({"conditional_disaggregation": False}, Routing)
    deployment = sim_deployment(1, 1, find_engine("instant"), routing)
    tally = Tally()
    with console.status("starting the server") as status, TritonServer(deployment, progress=status.update) as server:
        bench = Bench(server, settings)
        status.update("warming up")
        measure_round(bench, Tally(), tokens)
        for number in range(rounds):
            status.update(f"round {number + 1} of {rounds}")
            measure_round(bench, tally, tokens)
    report = OverheadReport(title="overhead", settings=settings, figures=list(tally.figures.values()))
    show(report, console)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
