"""The whole stack under the bare engine's own measurements: same model, same threads, through gRPC, lanes and NIXL."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import np_to_triton_dtype

STREAM_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class StackResult:
    """Medians over the repetitions."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: dict[int, float]
    """By number of streams at once."""
    ttft_ms: float
    """One request at a time, prompt of ``ttft_prompt`` tokens."""


@dataclass
class _Arrivals:
    """When the tokens of one stream came."""

    times: list[float]
    started: float


def _inputs(prompt: list[int], max_tokens: int) -> list[grpc_aio.InferInput]:
    values = {
        "input_ids": np.array([prompt], np.int32),
        "max_tokens": np.array([[max_tokens]], np.int32),
        "ignore_eos": np.array([[True]]),
        "stream": np.array([[True]]),
    }
    tensors = []
    for name, array in values.items():
        tensor = grpc_aio.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


async def _stream(client: grpc_aio.InferenceServerClient, prompt: list[int], max_tokens: int) -> _Arrivals:
    """One request to ``llm``; the arrival time of every token."""

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "llm", "inputs": _inputs(prompt, max_tokens), "enable_empty_final_response": True}

    arrivals = _Arrivals([], time.perf_counter())
    async for result, error in client.stream_infer(requests(), stream_timeout=STREAM_TIMEOUT_S):
        if error is not None:
            raise RuntimeError(f"the server refused a benchmark request: {error}")
        ids = result.as_numpy("output_ids")
        if ids is not None:
            arrivals.times += [time.perf_counter()] * ids.size
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    return arrivals


async def _together(url: str, prompts: list[list[int]], max_tokens: int) -> list[_Arrivals]:
    async with grpc_aio.InferenceServerClient(url) as client:
        return await asyncio.gather(*(_stream(client, prompt, max_tokens) for prompt in prompts))


def decode_rate(arrivals: list[list[float]]) -> float:
    """Tokens/s of all streams while all of them run: from the last first token to the first last token."""
    begin = max(times[0] for times in arrivals)
    end = min(times[-1] for times in arrivals)
    tokens = sum(1 for times in arrivals for at in times if begin < at <= end)
    return tokens / (end - begin)


def measure_decode(url: str, prompts: list[list[int]], max_tokens: int) -> float:
    """Decode tokens/s of as many streams at once as there are prompts."""
    arrivals = asyncio.run(_together(url, prompts, max_tokens))
    return decode_rate([stream.times for stream in arrivals])


def measure_prefill(url: str, prompts: list[list[int]]) -> float:
    """Prompt tokens/s, the prompts sent at once, each answered by one token."""
    started = time.perf_counter()
    arrivals = asyncio.run(_together(url, prompts, 1))
    finished = max(stream.times[-1] for stream in arrivals)
    return sum(map(len, prompts)) / (finished - started)


def measure_ttft(url: str, prompt: list[int], repeats: int) -> list[float]:
    """Seconds to the first token, one request at a time, each over a connection that is already open."""

    async def run() -> list[float]:
        taken = []
        async with grpc_aio.InferenceServerClient(url) as client:
            for _ in range(repeats):
                arrivals = await _stream(client, prompt, 1)
                taken.append(arrivals.times[0] - arrivals.started)
        return taken

    return asyncio.run(run())


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)
