"""Between Triton's Python backend and Tandem: tensors in, responses out. The only code that speaks ``pb_utils``."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.api.tensors import Array
from tandem.errors import ErrorCode, TandemError

_TRITON_CODES: dict[ErrorCode, str] = {
    "invalid_request": "INVALID_ARG",
    "prompt_too_long": "INVALID_ARG",
    "forbidden": "INVALID_ARG",
    "cancelled": "CANCELLED",
    "not_found": "NOT_FOUND",
    "overloaded": "UNAVAILABLE",
    "deadline_exceeded": "UNAVAILABLE",
    "worker_lost": "UNAVAILABLE",
    "transfer_failed": "UNAVAILABLE",
    "engine_failed": "INTERNAL",
    "worker_incompatible": "INTERNAL",
}
"""Names, since Triton fills ``pb_utils`` only after it has imported the model. The rest are a wrong KV handle's."""


def model_parameter(args: dict[str, str], name: str) -> str:
    """A string parameter of the model's ``config.pbtxt``.

    Raises:
        TandemError: it is missing.
    """
    config = json.loads(args["model_config"])
    try:
        return str(config["parameters"][name]["string_value"])
    except KeyError as error:
        raise TandemError(
            "invalid_request",
            f"config.pbtxt of model {args['model_name']}: parameter {name!r} is missing; lay the repository out with "
            f"`tandem serve`",
        ) from error


def deployment_file(args: dict[str, str]) -> Path:
    """Where the resolved deployment lies."""
    return Path(model_parameter(args, "deployment_file"))


def read_tensors(request: Any) -> dict[str, Array]:
    """All input tensors of a request by name. A tensor that cannot be read is a ``TandemError``."""
    tensors: dict[str, Array] = {}
    for tensor in request.inputs():
        try:
            tensors[tensor.name()] = tensor.as_numpy()
        except Exception as error:
            raise TandemError("invalid_request", f"{tensor.name()}: the tensor cannot be read: {error}") from error
    return tensors


def read_name_and_parameters(request: Any) -> tuple[str, str]:
    """A request's id and its parameters, as JSON. Triton hands on bytes that are no UTF-8: a ``TandemError``."""
    try:
        return request.request_id(), request.parameters()
    except UnicodeDecodeError as error:
        raise TandemError("invalid_request", f"request id or parameters: not valid UTF-8: {error}") from error


def to_response(tensors: dict[str, Array]) -> Any:
    """An inference response of these output tensors."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])


def to_error(error: TandemError) -> Any:
    """An inference response that is an error."""
    code = getattr(pb_utils.TritonError, _TRITON_CODES.get(error.code, "INVALID_ARG"))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


class TritonResponder:
    """The response channel of one request of a decoupled model."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._wanted = frozenset(request.requested_output_names())
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the final response or an error has been sent."""
        return self._closed

    def send(self, tensors: dict[str, Array], *, final: bool) -> None:
        """Send one response; after the final one nothing more leaves."""
        # Tensors that nobody asked for Triton 2.51 would drop itself, without the GIL, and corrupt Python's heap.
        wanted = {name: array for name, array in tensors.items() if name in self._wanted}
        self._send(to_response(wanted), final)

    def fail(self, error: TandemError) -> None:
        """End with an error."""
        self._send(to_error(error), True)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        # After the final response Triton has freed what this asks about: never both at once.
        with self._lock:
            return not self._closed and bool(self._sender.is_cancelled())

    def _send(self, response: Any, final: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = final
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
            self._sender.send(response, flags=flags)
