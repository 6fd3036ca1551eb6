"""A gRPC client of one Tandem server, for the commands."""

from __future__ import annotations

import os
import queue
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tandem.errors import ERROR_CODES, TandemError
from tandem.keys import FILE_VARIABLE, KEY_VARIABLE, Keys, load_keys, management_word
from tandem.lanes.seal import seal
from tandem.messages import LaneReply, LaneRequest, decoder, encode
from tandem.triton.command import MANAGEMENT_HEADER
from tandem.triton.home import own_key_file

_DTYPES: dict[str, type] = {
    **dict.fromkeys(("text_input", "messages", "stop_words"), np.object_),
    **dict.fromkeys(("input_ids", "max_tokens", "min_tokens", "top_k"), np.int32),
    **dict.fromkeys(("temperature", "top_p", "min_p"), np.float32),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), np.float32),
    **dict.fromkeys(("stream", "ignore_eos", "explain"), np.bool_),
    "seed": np.uint64,
    "lane_request": np.uint8,
}
_OWN_ERROR = re.compile(r"\[(?P<code>[a-z_]+)\] (?P<text>.*)", re.DOTALL)
_MANAGEMENT = f"triton-grpc-protocol-{MANAGEMENT_HEADER}"
_CALL_TIMEOUT_S = 5.0
_SILENCE_TIMEOUT_S = 330.0
"""Between two responses; a deployment's own deadline of a request, 300 s, comes first."""

_lane_reply: msgspec.msgpack.Decoder[LaneReply] = decoder(LaneReply)


class Client:
    """``with Client("127.0.0.1:8001") as client:``; every failure is a ``TandemError`` that names the address."""

    def __init__(self, url: str) -> None:
        if "://" in url:
            raise TandemError(
                "invalid_request", f"--url: {url!r} is no gRPC address; expected host:port, e.g. 127.0.0.1:8001"
            )
        self.url = url
        self._client = triton.InferenceServerClient(url)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def models(self) -> dict[str, str]:
        """Name → state of every model that the server knows.

        Raises:
            TandemError: ``not_found``, when no server answers; ``forbidden``, when it was started with another handle
                key.
        """
        headers = {_MANAGEMENT: management_word(find_keys().signing)}
        try:
            index = self._client.get_model_repository_index(headers=headers, client_timeout=_CALL_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._failure(error) from error
        return {model.name: model.state or "UNKNOWN" for model in index.models}

    def is_ready(self, model: str) -> bool:
        """Whether the server has a model that is ready.

        Raises:
            TandemError: ``not_found``, when no server answers.
        """
        try:
            return bool(self._client.is_model_ready(model, client_timeout=_CALL_TIMEOUT_S))
        except InferenceServerException as error:
            raise self._failure(error) from error

    def is_worker(self, model: str) -> bool:
        """Whether a model takes lane messages."""
        try:
            metadata = self._client.get_model_metadata(model, client_timeout=_CALL_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._failure(error) from error
        return any(tensor.name == "lane_request" for tensor in metadata.inputs)

    def call(self, worker: str, request: LaneRequest) -> LaneReply:
        """One lane message to a worker, and its reply.

        Raises:
            TandemError: the worker does not answer within 5 s.
        """
        data = seal(encode(request), worker, find_keys())
        inputs = {"lane_request": np.frombuffer(data, dtype=np.uint8)}
        for response in self.stream(worker, inputs, silence_s=_CALL_TIMEOUT_S):
            if "lane_reply" in response:
                return _lane_reply.decode(bytes(response["lane_reply"]))
        raise TandemError("worker_lost", f"worker {worker!r} at {self.url} gave no reply")

    def stream(
        self, model: str, inputs: dict[str, Any], *, silence_s: float = _SILENCE_TIMEOUT_S
    ) -> Iterator[dict[str, Any]]:
        """The responses to one request, as name → value (a scalar where there is one, else an array).

        Raises:
            TandemError: no server answers, the request is refused, or nothing comes for ``silence_s``.
        """
        responses: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
        self._client.stop_stream(cancel_requests=True)
        self._client.start_stream(lambda result, error: responses.put((result, error)))
        tensors = [_to_tensor(name, value) for name, value in inputs.items()]
        # Where no server answers this raises that the stream is broken; why it is comes as the first response.
        with suppress(InferenceServerException):
            self._client.async_stream_infer(model, tensors, enable_empty_final_response=True)
        while True:
            result, error = _next(responses, silence_s, self.url)
            if error is not None:
                raise self._failure(error) from error
            assert result is not None
            yield _to_values(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return

    def _failure(self, error: InferenceServerException) -> TandemError:
        """A failed call as a sentence; Tandem's own errors keep their code."""
        text = str(error.message() or error)
        if (own := _OWN_ERROR.search(text)) and own["code"] in ERROR_CODES:
            return TandemError(own["code"], own["text"])  # type: ignore[arg-type]
        if "restricted" in text:
            return TandemError(
                "forbidden",
                f"the server at {self.url} has another handle key; set {FILE_VARIABLE} or {KEY_VARIABLE} as there",
            )
        if "UNAVAILABLE" in str(error.status()) or "failed to connect" in text.lower():
            return TandemError(
                "not_found", f"no server answers at {self.url}; start one with: tandem serve deployments/local.toml"
            )
        return TandemError("engine_failed", f"the server at {self.url} says: {text}")


def find_keys() -> Keys:
    """The handle key that the environment names, else that of this checkout's own servers, which is made if need be."""
    if os.environ.get(FILE_VARIABLE) or os.environ.get(KEY_VARIABLE):
        return load_keys()
    try:
        return load_keys({FILE_VARIABLE: str(own_key_file(make=True))})
    except OSError as error:
        raise TandemError(
            "invalid_request", f"{FILE_VARIABLE}: is not set, and no key can be kept here: {error}"
        ) from error


def _next(
    responses: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]],
    silence_s: float,
    url: str,
) -> tuple[triton.InferResult | None, InferenceServerException | None]:
    """The next response; waits in short steps, since a long wait would hold up Ctrl-C."""
    deadline = time.monotonic() + silence_s
    while time.monotonic() < deadline:
        try:
            return responses.get(timeout=0.2)
        except queue.Empty:
            continue
    raise TandemError("deadline_exceeded", f"the server at {url} said nothing for {silence_s:.0f} s")


def _to_tensor(name: str, value: Any) -> triton.InferInput:
    """A value as a tensor of shape [1, n]."""
    values = value if isinstance(value, list | np.ndarray) else [value]
    if _DTYPES[name] is np.object_:
        values = [text.encode() for text in values]
    array: np.ndarray[Any, np.dtype[Any]] = np.array([values], dtype=_DTYPES[name])
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _to_values(result: triton.InferResult) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for output in result.get_response().outputs:
        array = result.as_numpy(output.name).reshape(-1)
        value = array.item() if array.size == 1 else array
        values[output.name] = value.decode() if isinstance(value, bytes) else value
    return values
