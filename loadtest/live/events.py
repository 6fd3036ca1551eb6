"""One response of ``llm`` as a client reads it, whatever it came by: server-sent events or gRPC."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

GRPC_TYPES: dict[str, tuple[str, type]] = {
    **dict.fromkeys(("text_input", "messages"), ("BYTES", np.object_)),
    **dict.fromkeys(("input_ids", "max_tokens"), ("INT32", np.int32)),
    **dict.fromkeys(("stream", "ignore_eos", "explain"), ("BOOL", np.bool_)),
    "temperature": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
}
"""The inputs that load is made of: their type in a request, and in numpy."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A response; the facts come with the last one. Fields as the outputs of ``llm``."""

    text_output: str = ""
    output_ids: int | list[int] = []
    finish_reason: str = ""
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    prefill_worker: str = ""
    decode_worker: str = ""
    error: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens that came with it. Triton's JSON shows a list of one as its element."""
        return 1 if isinstance(self.output_ids, int) else len(self.output_ids)


decode_json = msgspec.json.Decoder(Event).decode
"""What stands behind ``data:`` in a server-sent event."""


def to_json_body(inputs: dict[str, Any], parameters: dict[str, str | int] | None = None) -> bytes:
    """The body of a POST to ``generate_stream``; what is no input of the model becomes a request parameter."""
    return msgspec.json.encode({**inputs, **(parameters or {})})


def to_grpc_request(
    model: str, inputs: dict[str, Any], parameters: dict[str, str | int] | None = None
) -> service_pb2.ModelInferRequest:
    """The message for ``ModelStreamInfer``; scalars and lists become tensors of shape [1, n]."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, value in (parameters or {}).items():
        if isinstance(value, int):
            request.parameters[name].uint64_param = value
        else:
            request.parameters[name].string_param = value
    for name, value in inputs.items():
        datatype, dtype = GRPC_TYPES[name]
        values = value if isinstance(value, list) else [value]
        array: np.ndarray[tuple[int, ...], np.dtype[Any]] = np.array(
            [[v.encode() if isinstance(v, str) else v for v in values]], dtype
        ).reshape(1, -1)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
        request.raw_input_contents.append(raw)
    return request


def read_grpc_response(response: service_pb2.ModelStreamInferResponse) -> tuple[Event, bool]:
    """A response, and whether it is the last one."""
    if response.error_message:
        return Event(error=response.error_message), True
    infer = response.infer_response
    fields: dict[str, Any] = {}
    for output, raw in zip(infer.outputs, infer.raw_output_contents, strict=True):
        if output.name == "output_ids":
            fields["output_ids"] = np.frombuffer(raw, np.int32).tolist()
        elif output.name in Event.__struct_fields__:
            fields[output.name] = raw[4:].decode() if output.datatype == "BYTES" else int.from_bytes(raw, "little")
    return Event(**fields), infer.parameters["triton_final_response"].bool_param
