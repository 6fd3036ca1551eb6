"""More than the workers can do: ``make overload``.

Simulated workers behind one Triton. First as much as they can do, then ten times as much, from two tenants of which one
asks for ten times what the other does. Prints how much is done of it, what those who are served have to wait, how soon
the others are refused, and whether memory stays flat. Exit status 1 where less than 0.9 of the peak is done, or an
answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tritonclient.grpc.aio as grpc_aio
from memory import Memory, Sample, judge_all, watch_memory
from rich.console import Console
from rich.table import Table
from tritonclient.utils import np_to_triton_dtype

from tandem.deployment import Deployment, load_deployment, override
from tandem.engines.sim.tokens import expected_answer
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
TIMING = {"start_s": 0.0, "overhead_s": 0.01, "token_s": 0.5e-3, "pair_s": 0.0}
"""Two thousand prompt tokens a second: so slow that a client can ask for ten times as much."""
PROMPT, ANSWER = 200, 20
CAPACITY = 2 / (TIMING["overhead_s"] + PROMPT * TIMING["token_s"])
"""Requests a second that can be read: where too many wait for the prefill worker, the decode worker reads as well."""
LIGHT_SHARE = 1 / 11
DEADLINE_S = 60.0
MAX_QUEUE_S = 2.0
LEAST_SHARE = 0.9
TABLE_WIDTH = 130


@dataclass
class Phase:
    """Requests that come at one rate for a while, and what became of them."""

    name: str
    rate: float
    """A second."""
    seconds: float
    served: Counter[str] = field(default_factory=Counter)
    """By tenant."""
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Any other end."""
    ttft_s: list[float] = field(default_factory=list)
    refusal_s: list[float] = field(default_factory=list)
    """To the refusals, each from when its request was sent."""
    took_s: float = 0.0
    memory: dict[str, Memory | None] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return self.served.total() + self.refused + self.others.total()

    @property
    def goodput(self) -> float:
        """Whole answers a second."""
        return self.served.total() / self.took_s


def make_deployment() -> Deployment:
    """``deployments/sim.toml`` with slow workers and free ports."""
    plain = override(load_deployment(ROOT / "deployments" / "sim.toml"), http_port=0, grpc_port=0, metrics_port=0)
    workers = [msgspec.structs.replace(w, timing=TIMING) for w in plain.worker]
    limits = msgspec.structs.replace(plain.limits, max_queue_s=MAX_QUEUE_S)
    kv = msgspec.structs.replace(plain.kv, prefix_cache=False)  # which grows until it is full
    return msgspec.structs.replace(plain, worker=workers, limits=limits, kv=kv)


def to_inputs(number: int, prompt: list[int], tenant: str) -> list[grpc_aio.InferInput]:
    """One request's tensors."""
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "input_ids": np.array([prompt], np.int32),
        "max_tokens": np.array([[ANSWER]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "seed": np.array([[number]], np.uint64),
        "ignore_eos": np.array([[True]]),
        "stream": np.array([[True]]),
        "tenant": np.array([[tenant.encode()]], np.object_),
    }
    tensors = []
    for name, array in arrays.items():
        tensor = grpc_aio.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


async def one_request(
    client: grpc_aio.InferenceServerClient, number: int, tenant: str, vocab_size: int, phase: Phase
) -> None:
    """Send one request, see what becomes of it."""
    draw = random.Random(number)
    prompt = [draw.randrange(vocab_size) for _ in range(PROMPT)]
    inputs = to_inputs(number, prompt, tenant)

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "llm", "inputs": inputs, "enable_empty_final_response": True}

    began, ids, ttft_s = time.monotonic(), list[int](), 0.0
    ended = False
    async for result, error in client.stream_infer(requests(), stream_timeout=DEADLINE_S):
        if error is not None:
            if "[overloaded]" in str(error):
                phase.refused += 1
                phase.refusal_s.append(time.monotonic() - began)
            else:
                phase.others[str(error)[:80]] += 1
            ended = True
            continue  # a stream that is not read to its end costs Triton memory
        if (new := result.as_numpy("output_ids")) is not None:
            ttft_s = ttft_s or time.monotonic() - began
            ids += new.reshape(-1).tolist()
    if ended:
        return
    if ids == expected_answer(number, prompt, ANSWER, vocab_size):
        phase.served[tenant] += 1
        phase.ttft_s.append(ttft_s)
    else:
        phase.others["WRONG ANSWER"] += 1


async def run(url: str, phase: Phase, vocab_size: int) -> None:
    """Send at the phase's rate, whatever comes back; then wait for the last answer."""
    draw, samples = random.Random(7), dict[str, list[Sample]]()
    watcher = asyncio.create_task(watch_memory(samples, phase))
    began, at, running = time.monotonic(), 0.0, set[asyncio.Task[None]]()
    async with grpc_aio.InferenceServerClient(url) as client:
        number = 0
        while (at := at + draw.expovariate(phase.rate)) < phase.seconds:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            tenant = "light" if draw.random() < LIGHT_SHARE else "heavy"
            task = asyncio.create_task(one_request(client, number, tenant, vocab_size, phase))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.gather(*running)
    phase.took_s = time.monotonic() - began
    watcher.cancel()
    phase.memory = judge_all(samples, phase.done)


def percentile(seconds: list[float], share: float) -> str:
    """In milliseconds, to be shown."""
    return f"{1e3 * sorted(seconds)[int(share * (len(seconds) - 1))]:.0f}" if seconds else ""


def show(phases: list[Phase], console: Console) -> bool:
    """Print what happened; whether all is well."""
    peak = max(phase.goodput for phase in phases)
    table = Table(
        title=f"overload: {CAPACITY:.1f} requests/s can be read, at most {MAX_QUEUE_S:g} s of wait are allowed"
    )
    headings = "phase", "asked/s", "done/s", "of peak", "TTFT ms p50", "p99", "refused", "refused after ms p50", "p99"
    for heading in (*headings, "light : heavy", "memory"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in phases:
        judged = [memory for memory in phase.memory.values() if memory is not None]
        table.add_row(
            phase.name,
            f"{phase.done / phase.seconds:.1f}",
            f"{phase.goodput:.1f}",
            f"{phase.goodput / peak:.2f}",
            percentile(phase.ttft_s, 0.5),
            percentile(phase.ttft_s, 0.99),
            str(phase.refused),
            percentile(phase.refusal_s, 0.5),
            percentile(phase.refusal_s, 0.99),
            f"{phase.served['light']} : {phase.served['heavy']}",
            "" if not judged else "flat" if all(memory.flat for memory in judged) else "GROWS",
        )
    console.print(table)
    for phase in phases:
        for name, memory in phase.memory.items():
            if memory is not None and not memory.flat:
                console.print(f"{phase.name}: {name} grows by {memory.bytes_per_request:.0f} bytes a request")
        if phase.others:
            console.print(f"{phase.name}: {dict(phase.others)}")
    return all(phase.goodput >= LEAST_SHARE * peak and not phase.others for phase in phases[1:])


def main() -> None:
    """Run all phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload; the peak is measured in a quarter")
    seconds = parser.parse_args().seconds
    console, deployment = Console(width=TABLE_WIDTH), make_deployment()
    phases = [
        Phase("warm-up", 0.5 * CAPACITY, 5.0),
        Phase("peak", 1.1 * CAPACITY, seconds / 4),
        Phase("10 times", 10 * CAPACITY, seconds),
    ]
    vocab_size = TextCodec(Path(deployment.model.path)).vocab_size
    with TritonServer(deployment) as server:
        for phase in phases:
            asyncio.run(run(server.grpc_url, phase, vocab_size))
    well = show(phases[1:], console)
    out = ROOT / ".tandem" / "overload.json"
    out.write_bytes(msgspec.json.format(msgspec.json.encode(phases), indent=2))
    median_ms = 1e3 * statistics.median(phases[-1].refusal_s or [0.0])
    console.print(f"median time of a refusal: {median_ms:.1f} ms; written: {out.relative_to(ROOT)}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
