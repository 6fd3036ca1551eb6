"""The conversation trace in real time on a live server with simulated workers, per routing policy: ``make replay``.

Starts one server per policy and round, on free ports. Prints TTFT, inter-token times, cache hits and balance beside a
named reference; writes ``.tandem/replay.json``, which ``compare.py`` reads and ``plot_replay.py`` draws.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from live.engines import MOCKER, find_engine
from live.events import Event, to_grpc_request
from live.fleet import MODEL, ROOT, sim_deployment
from live.grpc_stream import GrpcClient
from live.record import Record, Recording
from live.replay_report import Policy, ReplayReport, Settings, add_round, table
from live.schedule import Due, prefill_load, schedule
from rich.console import Console
from simulate import POLICIES, TRACE

from tandem.cli.client import Client
from tandem.deployment import Deployment, Routing
from tandem.engines.sim.engine import read_vocab_size
from tandem.messages import Hello, HelloReply
from tandem.simulation.results import balance
from tandem.simulation.trace import read_trace
from tandem.triton.server import TritonServer

TIMEOUT_S = 300.0
LEAD_S = 0.5
"""From the last preparation to the first request."""
TABLE_WIDTH = 165


@dataclass(frozen=True)
class Replayed:
    """One round of one policy."""

    records: list[Record]
    balance: float
    """Computing time of the busiest prefill worker over their mean."""
    late_s: float
    """The most by which the client sent a request later than it was due."""


async def replay(url: str, due: list[Due], kind: str) -> list[Record]:
    """Send every request when it is due, and read all answers to their ends."""
    requests = [
        to_grpc_request(
            "llm",
            {"input_ids": one.prompt, "max_tokens": one.max_tokens, "ignore_eos": True, "stream": True, "seed": number},
        )
        for number, one in enumerate(due)
    ]
    async with GrpcClient(url) as client:
        began = time.perf_counter() + LEAD_S

        async def one_request(number: int) -> Record:
            at = due[number].at
            await asyncio.sleep(began + at - time.perf_counter())
            recording = Recording(kind, at, time.perf_counter() - began)

            def take(event: Event) -> None:
                recording.take(event, time.perf_counter() - began)

            error = ""
            try:
                await client.ask(requests[number], take, TIMEOUT_S)
            except Exception as failure:  # whatever a client may meet is a figure of the load test
                error = f"{type(failure).__name__}: {failure}"
            return recording.end(time.perf_counter() - began, error=error)

        return await asyncio.gather(*(one_request(number) for number in range(len(due))))


def prefill_seconds(server: TritonServer) -> list[float]:
    """How long each prefill worker has computed since its start."""
    found = []
    with Client(server.grpc_url) as client:
        for worker in server.deployment.workers("prefill"):
            reply = client.call(worker.name, Hello())
            assert isinstance(reply, HelloReply)
            found.append(reply.load.prefill_seconds)
    return found


def run_round(deployment: Deployment, due: list[Due]) -> Replayed:
    """One policy on a server that has nothing cached yet."""
    with TritonServer(deployment) as server:
        records = asyncio.run(replay(server.grpc_url, due, deployment.routing.policy))
        busy = prefill_seconds(server)
    return Replayed(records, balance(busy), max(record.sent - record.due for record in records))


def replay_all(settings: Settings, due: list[Due], names: list[str], rounds: int, console: Console) -> list[Policy]:
    """All policies in turn, ``rounds`` times, each on a server of its own."""
    engine = find_engine(settings.engine, settings.engine_speed)
    policies = [Policy(name=name) for name in names]
    for number in range(rounds):
        for policy in policies:
            routing = msgspec.convert({"policy": policy.name, "conditional_disaggregation": settings.whole}, Routing)
            deployment = sim_deployment(
                settings.prefill_workers, settings.decode_workers, engine, routing, block_size=settings.block_size
            )
            with console.status(f"{policy.name}, round {number + 1} of {rounds}"):
                replayed = run_round(deployment, due)
            add_round(policy, replayed.records, replayed.balance, replayed.late_s)
    return policies


def main(
    policy: Annotated[list[str] | None, typer.Option(help="Of routing.  [default: all]")] = None,
    prefill: Annotated[int, typer.Option(help="Workers that read prompts.")] = 2,
    decode: Annotated[int, typer.Option(help="Workers that write answers.")] = 2,
    whole: Annotated[bool, typer.Option(help="Decode workers may read prompts, where that takes less.")] = False,
    engine: Annotated[str, typer.Option(help="What a worker is: mocker, or a profile of simulated engines.")] = MOCKER,
    engine_speed: Annotated[float, typer.Option(help="How many times as fast as that.")] = 4.0,
    speed: Annotated[float, typer.Option(help="How many times as fast requests come as recorded.")] = 8.0,
    limit: Annotated[int, typer.Option(help="How many of the trace, from its beginning.")] = 400,
    tokens: Annotated[int, typer.Option(help="Answers are cut at as many.")] = 32,
    block: Annotated[int, typer.Option(help="Tokens of a KV block.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each policy runs, in turn.")] = 1,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "replay.json",
) -> None:
    """Replay, print the table, write the JSON."""
    console = Console(width=max(TABLE_WIDTH, Console().width))
    found = find_engine(engine, engine_speed)
    due = schedule(
        read_trace(TRACE)[:limit],
        speed=speed,
        most_answer=tokens,
        vocab_size=read_vocab_size(MODEL),
        context=found.context,
    )
    settings = Settings(
        engine=engine,
        prefill_workers=prefill,
        decode_workers=decode,
        whole=whole,
        engine_speed=engine_speed,
        speed=speed,
        requests=len(due),
        most_tokens=tokens,
        block_size=block,
        load=prefill_load(due, found.prefill, prefill),
    )
    policies = replay_all(settings, due, policy or POLICIES, rounds, console)
    report = ReplayReport.of(settings, policies)
    console.print(table(report))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
