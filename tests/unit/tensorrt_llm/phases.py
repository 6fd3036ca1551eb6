"""Requests in one and in two phases, and their answers; run as a program, a context engine in a process of its own."""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB = 400
PROMPT = list(range(10, 33))


def expected(count: int, prompt: list[int] = PROMPT, **more: Any) -> list[int]:
    """The answer, known beforehand."""
    from tensorrt_llm._tokens import expected_answer

    return expected_answer(prompt, count, VOCAB, **more)


def blocks_used(llm: Any) -> int:
    """A figure of the engine that the library tells with its steps alone."""
    return int(llm._executor._blocks.used)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def take(feed: Any, count: int) -> list[Any]:
    """So many items of a feed."""
    return [await anext(feed) for _ in range(count)]


def sampling(max_tokens: int = 6, **fields: Any) -> Any:
    from tensorrt_llm import SamplingParams

    return SamplingParams(**{"max_tokens": max_tokens, "end_id": -1, "detokenize": False} | fields)


async def answer(llm: Any, prompt: list[int], **fields: Any) -> list[int]:
    """In one phase."""
    output = await llm.generate_async(prompt, sampling_params=sampling(**fields))
    return list(output.outputs[0].token_ids)


async def prefill(llm: Any, prompt: list[int], **fields: Any) -> Any:
    """The context phase: its result."""
    from tensorrt_llm import DisaggregatedParams

    params = DisaggregatedParams(request_type="context_only")
    return await llm.generate_async(prompt, sampling_params=sampling(**fields), disaggregated_params=params)


def start_decode(llm: Any, prompt: list[int], handle: Any, *, streaming: bool = True, **fields: Any) -> Any:
    """The generation phase of what ``prefill`` gave."""
    handle.request_type = "generation_only"
    return llm.generate_async(
        prompt, sampling_params=sampling(**fields), disaggregated_params=handle, streaming=streaming
    )


async def decode(llm: Any, prompt: list[int], handle: Any, **fields: Any) -> list[int]:
    output = await start_decode(llm, prompt, handle, **fields)
    return list(output.outputs[0].token_ids)


async def serve_one_context(model_dir: Path, prompt: list[int]) -> None:
    """Say on stdout what the context phase gave, and keep its KV until stdin is closed."""
    import tensorrt_llm

    transceiver = {"backend": "UCX", "kv_transfer_timeout_ms": 60_000}
    with tensorrt_llm.LLM(
        model_dir,
        skip_tokenizer_init=True,
        disable_overlap_scheduler=True,
        cache_transceiver_config=transceiver,
        kv_cache_config={"tokens_per_block": 4},
    ) as llm:
        handle = (await prefill(llm, prompt)).outputs[0].disaggregated_params
        said = {name: getattr(handle, name) for name in ("first_gen_tokens", "ctx_request_id", "opaque_state")}
        sys.stdout.buffer.write(pickle.dumps(said))
        sys.stdout.buffer.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve_one_context(Path(sys.argv[1]), [int(each) for each in sys.argv[2].split(",")]))
