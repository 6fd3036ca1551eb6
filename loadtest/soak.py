"""No hang, no leak: thousands of short requests, some of which leave at random moments. ``make soak``.

Starts its own server, warms it up, sends 10,000 requests at 64 at once and 2,000 at 128, cancels a tenth, and looks for
what is left: requests without an end, KV blocks, handles, memory. Prints a table, writes ``soak.json``; exit status 1
if anything is left, an answer is wrong or the memory of any process is not flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from memory import ALLOWED_SHARE, OUTLOOK, Memory, Sample, judge_all, watch_memory
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tandem.cli.client import Client
from tandem.deployment import load_deployment, override
from tandem.engines.torch.linear import padded_rows
from tandem.messages import Hello, HelloReply, Load
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
ANSWER_TOKENS = 6
REQUEST_TIMEOUT_S = 120.0
SETTLE_S = 30.0
MOST_ROWS = 1792
"""A step of prefill reads so many tokens at most here: 128 prompts of up to 14 at once."""

Tensors = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
_TRUE = np.array([[True]])


@dataclass
class Round:
    """One round of requests and what became of them."""

    requests: int
    at_once: int
    warms_up: bool = False
    """Memory is not judged."""
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    memory: dict[str, Memory | None] = field(default_factory=dict)
    """Per process; None where it was not seen long enough to judge."""
    left: dict[str, list[int]] = field(default_factory=dict)
    """Per worker: queued, running, blocks used, handles held, after the last request."""

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return sum(self.outcomes.values())


async def one_request(client: grpc_aio.InferenceServerClient, number: int, draw: random.Random) -> str:
    """Send one request; how it ended."""
    leave_after = draw.uniform(0.0, 1.5) if draw.random() < 0.1 else None
    try:
        text = f"Request {number}: count on, {number % 10},".encode()
        prompt = {"text_input": np.array([[text]], np.object_)}
        return await asyncio.wait_for(_stream(client, prompt), leave_after or REQUEST_TIMEOUT_S)
    except asyncio.TimeoutError:
        return "left" if leave_after else "HUNG"
    except InferenceServerException as error:
        return f"error: {error.message()[:80]}"


async def _stream(client: grpc_aio.InferenceServerClient, prompt: Tensors) -> str:
    """The whole stream of one answer; whether it was whole."""
    inputs = []
    options = {"max_tokens": np.array([[ANSWER_TOKENS]], np.int32), "ignore_eos": _TRUE, "stream": _TRUE}
    for name, array in {**prompt, **options}.items():
        tensor = grpc_aio.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "llm", "inputs": inputs, "enable_empty_final_response": True}

    tokens = 0
    stream = client.stream_infer(requests())
    try:
        async for result, error in stream:
            if error is not None:
                return f"error: {str(error)[:80]}"
            ids = result.as_numpy("output_ids")
            tokens += 0 if ids is None else ids.size
    finally:
        stream.cancel()  # of no effect where the stream was read to its end
    return "whole answer" if tokens == ANSWER_TOKENS else f"WRONG: {tokens} tokens"


async def see_all_sizes(url: str, most_rows: int, progress: Progress) -> None:
    """A prompt for each number of rows of a step of prefill, so that its kernels are there before memory is judged."""
    sizes = sorted({padded_rows(rows) for rows in range(1, most_rows + 1)})
    async with grpc_aio.InferenceServerClient(url) as client:
        for rows in progress.track(sizes, description="a prompt of each size"):
            outcome = await _stream(client, {"input_ids": np.ones((1, rows), np.int32)})
            if outcome != "whole answer":
                raise SystemExit(f"a prompt of {rows} tokens, while warming up: {outcome}")


async def run_round(url: str, this: Round, progress: Progress, draw: random.Random) -> None:
    """All requests of a round, ``at_once`` at a time."""
    task = progress.add_task(f"{this.requests} requests, {this.at_once} at once", total=this.requests)
    numbers = iter(range(this.requests))
    started = time.monotonic()

    async def sender() -> None:
        async with grpc_aio.InferenceServerClient(url) as client:
            for number in numbers:
                outcome = await one_request(client, number, draw)
                this.outcomes[outcome] = this.outcomes.get(outcome, 0) + 1
                progress.advance(task)

    await asyncio.gather(*(sender() for _ in range(this.at_once)))
    this.seconds = time.monotonic() - started


def load_of(client: Client, worker: str) -> Load:
    """What a worker has in hand."""
    reply = client.call(worker, Hello())
    assert isinstance(reply, HelloReply)
    return reply.load


def in_use(server: TritonServer) -> dict[str, list[int]]:
    """Queued, running, blocks used and handles held of every worker."""
    with Client(server.grpc_url) as client:
        loads = {worker.name: load_of(client, worker.name) for worker in server.deployment.worker}
    return {name: [load.queued, load.running, load.blocks_used, load.handles_held] for name, load in loads.items()}


async def soak(server: TritonServer, rounds: list[Round], progress: Progress) -> None:
    """Run all rounds, watching memory, and look after each for what is left."""
    draw = random.Random(2)
    await see_all_sizes(server.grpc_url, MOST_ROWS, progress)
    for this in rounds:
        samples: dict[str, list[Sample]] = {}
        watcher = asyncio.create_task(watch_memory(samples, this))
        await run_round(server.grpc_url, this, progress, draw)
        watcher.cancel()
        this.memory = {} if this.warms_up else judge_all(samples, this.requests)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            this.left = await asyncio.to_thread(in_use, server)
            if not any(map(any, this.left.values())):
                break
            await asyncio.sleep(0.2)


def show(rounds: list[Round], console: Console) -> bool:
    """Print what happened; whether all is well."""
    table = Table(title="soak")
    for heading in ("requests", "at once", "requests/s", "outcomes", "left over"):
        table.add_column(heading)
    well = True
    for this in rounds:
        left = sum(sum(values) for values in this.left.values())
        well &= left == 0 and set(this.outcomes) <= {"whole answer", "left"}
        table.add_row(
            str(this.requests),
            str(this.at_once),
            f"{this.requests / this.seconds:.1f}",
            ", ".join(f"{count} {outcome}" for outcome, count in this.outcomes.items()),
            "nothing" if left == 0 else str(this.left),
        )
    console.print(table)
    return show_memory(rounds, console) and well


def show_memory(rounds: list[Round], console: Console) -> bool:
    """Print the memory of each process in the second half of each round; whether all of it is flat."""
    table = Table(
        title=f"memory over the second half; flat: {OUTLOOK} times the requests add at most {ALLOWED_SHARE:.0%}"
    )
    for heading in ("requests", "process", "resident MiB", "bytes/request", f"{OUTLOOK} times the requests", "verdict"):
        table.add_column(heading, justify="left" if heading in ("process", "verdict") else "right")
    well = True
    for this in rounds:
        well &= bool(this.memory) or this.warms_up
        for name, memory in sorted(this.memory.items()):
            if memory is None:
                table.add_row(str(this.requests), name, "", "", "", "TOO SHORT TO JUDGE")
            else:
                figures = f"{memory.resident_mib:.1f}", f"{memory.bytes_per_request:+.0f}", f"{memory.outlook:+.1%}"
                table.add_row(str(this.requests), name, *figures, "flat" if memory.flat else "GROWS")
            well &= memory is not None and memory.flat
    console.print(table)
    return well


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=10_000, help="of the long round; warming up and the last round have a fifth"
    )
    requests = parser.parse_args().requests
    rounds = [Round(requests // 5, 128, warms_up=True), Round(requests, 64), Round(requests // 5, 128)]
    console = Console()
    deployment = override(
        load_deployment(ROOT / "deployments" / "local.toml"), http_port=0, grpc_port=0, metrics_port=0
    )
    with Progress(console=console) as progress, TritonServer(deployment) as server:
        asyncio.run(soak(server, rounds, progress))
    well = show(rounds, console)
    out = ROOT / ".tandem" / "soak.json"
    out.write_text(json.dumps([asdict(this) for this in rounds], indent=2))
    console.print(f"written: {out.relative_to(ROOT)}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
