"""What the whole stack costs: gRPC, orchestrator, lanes and the KV hand-over, beside the bare engine in the same run.

Both get the same prompts and take turns, on the same number of threads per engine; each figure is a median. The stack's
clients run in this process, one gRPC stream per request, so their own work counts against the stack.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import tritonclient.grpc.aio as grpc_aio
from engine_bench import BATCHES, PREFILL_TOKENS, PROMPT_TOKENS, BareEngine, Workload, bare_engine, random_prompts
from rich.table import Table
from tritonclient.utils import np_to_triton_dtype

from tandem.deployment import Deployment
from tandem.triton.server import TritonServer

STEPS = 128
VOCAB_SIZE = 49_000
STREAM_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class StackBenchRow:
    """One workload. Tokens/s, or milliseconds for the time to first token."""

    name: str
    unit: str
    stack: float
    engine: float
    ratio: float
    """Stack over bare engine."""


@dataclass(frozen=True)
class StackBenchReport:
    """All workloads of one run."""

    threads: int
    repetitions: int
    rows: list[StackBenchRow]
    added_ttft_ms: float
    """Median time to first token through the stack less that of the bare engine, one request at a time."""


@dataclass(frozen=True)
class _Arrivals:
    """When a stream was sent, and when its tokens came."""

    sent: float
    times: list[float]


WORKLOADS = (Workload(4, PREFILL_TOKENS, 0), *(Workload(batch, PROMPT_TOKENS, STEPS) for batch in BATCHES))
TTFT = Workload(1, PROMPT_TOKENS, 0)


def run_stack_bench(deployment: Deployment, threads: int = 1, repetitions: int = 3) -> StackBenchReport:
    """Measure every workload ``repetitions`` times, stack and bare engine in turn."""
    workers = [msgspec.structs.replace(worker, threads=threads) for worker in deployment.worker]
    model = deployment.model
    with (
        TritonServer(msgspec.structs.replace(deployment, worker=workers)) as server,
        bare_engine(Path(model.path), threads, model.dtype) as engine,
    ):
        rows = [_compare(server.grpc_url, engine, workload, repetitions) for workload in WORKLOADS]
        ttft = _compare(server.grpc_url, engine, TTFT, 10 * repetitions)
    rows.append(_as_latency(ttft))
    return StackBenchReport(threads, repetitions, rows, rows[-1].stack - rows[-1].engine)


def table(report: StackBenchReport) -> Table:
    """The report for a terminal."""
    title = f"whole stack beside the bare engine, {report.threads} thread(s) an engine, median of {report.repetitions}"
    result = Table("", "whole stack", "bare engine", "ratio", title=title)
    for column in result.columns[1:]:
        column.justify = "right"
    for row in report.rows:
        result.add_row(f"{row.name}, {row.unit}", f"{row.stack:.1f}", f"{row.engine:.1f}", f"{row.ratio:.2f}")
    result.add_row("added time to first token, ms", f"{report.added_ttft_ms:.1f}", "", "")
    return result


def _compare(url: str, engine: BareEngine, workload: Workload, repetitions: int) -> StackBenchRow:
    ours, bare = [], []
    for repetition in range(repetitions + 1):
        prompts = random_prompts(workload, VOCAB_SIZE)
        stack_rate = asyncio.run(_run_stack(url, prompts, workload.steps))
        engine_s = engine.run(prompts, workload.steps)
        if repetition:  # the first one warms up
            ours.append(stack_rate)
            bare.append(workload.tokens / engine_s)
    stack, alone = statistics.median(ours), statistics.median(bare)
    return StackBenchRow(workload.name, "tokens/s", stack, alone, stack / alone)


def _as_latency(row: StackBenchRow) -> StackBenchRow:
    """Tokens/s of one prompt at a time, as the milliseconds until its answer's first token."""
    stack_ms, engine_ms = (1e3 * TTFT.prompt / rate for rate in (row.stack, row.engine))
    name = f"time to first token, {TTFT.prompt} tokens"
    return StackBenchRow(name, "ms", stack_ms, engine_ms, stack_ms / engine_ms)


async def _run_stack(url: str, prompts: list[list[int]], steps: int) -> float:
    """Tokens/s: of the prompts (no ``steps``), or of the answers while all streams run.

    The engines of the stack work side by side, so the first streams decode while the last prompts are still read:
    what comes before the last first token, or after the first last one, does not count.
    """
    async with grpc_aio.InferenceServerClient(url) as client:
        await client.is_server_live()  # the connection is open before the clock starts
        streams = await asyncio.gather(*(_stream(client, prompt, steps + 1) for prompt in prompts))
    read = max(stream.times[0] for stream in streams)
    if not steps:
        return sum(map(len, prompts)) / (read - min(stream.sent for stream in streams))
    end = min(stream.times[-1] for stream in streams)
    return sum(read < at <= end for stream in streams for at in stream.times) / (end - read)


async def _stream(client: grpc_aio.InferenceServerClient, prompt: list[int], max_tokens: int) -> _Arrivals:
    """One request to ``llm``."""

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "llm", "inputs": inputs, "enable_empty_final_response": True}

    inputs = [
        _tensor("input_ids", np.array([prompt], np.int32)),
        _tensor("max_tokens", np.array([[max_tokens]], np.int32)),
        _tensor("ignore_eos", np.array([[True]])),
        _tensor("stream", np.array([[True]])),
    ]
    sent, times = time.perf_counter(), list[float]()
    async for result, error in client.stream_infer(requests(), stream_timeout=STREAM_TIMEOUT_S):
        if error is not None:
            raise RuntimeError(f"the server refused a benchmark request: {error}")
        ids = result.as_numpy("output_ids")
        times += [time.perf_counter()] * (0 if ids is None else ids.size)
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    if len(times) != max_tokens:
        raise RuntimeError(f"an answer has {len(times)} tokens, {max_tokens} were asked for")
    return _Arrivals(sent, times)


def _tensor(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> grpc_aio.InferInput:
    tensor = grpc_aio.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
