"""Real clients for tests: gRPC streams, one per request, and Triton's HTTP generate extension."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

INPUTS: dict[str, type] = {
    "max_tokens": np.int32, "min_tokens": np.int32, "top_k": np.int32, "top_logprobs": np.int32,
    "temperature": np.float32, "top_p": np.float32, "min_p": np.float32, "repetition_penalty": np.float32,
    "presence_penalty": np.float32, "frequency_penalty": np.float32, "timeout_s": np.float32,
    "seed": np.uint64, "stream": np.bool_, "stop": np.bool_, "ignore_eos": np.bool_, "return_log_probs": np.bool_,
    "input_ids": np.int32, "output_ids": np.int32, "stop_token_ids": np.int32,
    "priority": np.int32, "tenant": np.object_,
    "text_input": np.object_, "messages": np.object_, "stop_words": np.object_, "kv_handle": np.object_,
    "lora_task_id": np.uint64, "guided_decoding_guide_type": np.object_, "guided_decoding_guide": np.object_,
}  # fmt: skip
TIMEOUT_S = 240.0


@dataclass
class Answer:
    """All responses of one request."""

    pieces: list[str] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def to_tensors(inputs: dict[str, Any]) -> list[grpc_aio.InferInput]:
    """Plain values as [1, n] input tensors; numpy arrays go as they are."""
    tensors = []
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            array = value
        else:
            values = value if isinstance(value, list) else [value]
            encoded = [v.encode() if isinstance(v, str) else v for v in values]
            array = np.array([encoded], dtype=INPUTS[name])
        tensor = grpc_aio.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


async def ask(
    client: grpc_aio.InferenceServerClient,
    model: str,
    inputs: dict[str, Any],
    *,
    request_id: str = "",
    leave_after: int | None = None,
    on_response: Callable[[Answer], None] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request on a gRPC stream of its own; with ``leave_after`` the client goes after that many responses."""
    answer = Answer()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": model,
            "inputs": to_tensors(inputs),
            "request_id": request_id,
            "enable_empty_final_response": True,
        }

    stream = client.stream_infer(requests(), stream_timeout=TIMEOUT_S, headers=headers)
    seen = 0
    try:
        async for result, error in stream:
            if error is not None:
                answer.error = str(error)
                break
            _take(result, answer)
            seen += 1
            if on_response is not None:
                on_response(answer)
            if leave_after is not None and seen >= leave_after:
                stream.cancel()
                answer.facts["left"] = True
                break
            parameters = result.get_response().parameters
            if parameters["triton_final_response"].bool_param:
                break
    except (InferenceServerException, asyncio.CancelledError) as error:
        if "left" not in answer.facts:
            answer.error = str(error)
    return answer


def _take(result: Any, answer: Answer) -> None:
    for tensor in result.get_response().outputs:
        value = result.as_numpy(tensor.name).reshape(-1)
        if tensor.name == "text_output":
            answer.pieces.append(value[0].decode())
        elif tensor.name == "output_ids":
            answer.output_ids += value.tolist()
        elif tensor.name.endswith("log_probs") and tensor.name.startswith("output"):
            answer.facts.setdefault(tensor.name, []).extend(value.tolist())
        else:
            item = value[0]
            answer.facts[tensor.name] = item.decode() if isinstance(item, bytes) else item.item()


def ask_now(grpc_url: str, model: str, inputs: dict[str, Any], **options: Any) -> Answer:
    """``ask``, for tests that are not asynchronous."""

    async def run() -> Answer:
        async with grpc_aio.InferenceServerClient(grpc_url) as client:
            return await ask(client, model, inputs, **options)

    return asyncio.run(run())


async def ask_all(grpc_url: str, model: str, inputs: list[dict[str, Any]], *, at_once: int) -> list[Answer]:
    """Many requests, at most ``at_once`` at a time; answers in the order of the requests."""
    gate = asyncio.Semaphore(at_once)
    async with grpc_aio.InferenceServerClient(grpc_url) as client:

        async def one(item: dict[str, Any]) -> Answer:
            async with gate:
                return await ask(client, model, item)

        return await asyncio.gather(*(one(item) for item in inputs))


def post(url: str, body: dict[str, Any] | bytes) -> tuple[int, str]:
    """HTTP POST of JSON (or raw bytes); status and body, errors included."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def generate(http_url: str, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """``/generate``: one JSON answer."""
    status, text = post(f"{http_url}/v2/models/{model}/generate", body)
    assert status == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def generate_stream(http_url: str, model: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """``/generate_stream``: the JSON of every server-sent event."""
    status, text = post(f"{http_url}/v2/models/{model}/generate_stream", body)
    assert status == 200, text
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]
