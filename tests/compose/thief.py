"""Run inside the workers' network with a worker's certificate, but without the handle key: prints what it is told.

The last line is a JSON object, attempt → answer. ``access`` is what those say who may call stages.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as triton

from tandem.deployment import Tls
from tandem.errors import TandemError
from tandem.keys import Keys, access_word
from tandem.lanes.grpc import GrpcTransport
from tandem.messages import Cancel, Hello, LaneRequest
from tandem.tls import WORKER_NAME, channel_credentials

HERE = Path("/run/tandem")
TLS = Tls(ca=str(HERE / "ca.pem"), certificate=str(HERE / "certificate.pem"), key=str(HERE / "key.pem"))
OTHER = Keys([bytes(32)])
PROMPT = list(range(1, 30))


def send(worker: str, message: LaneRequest) -> str:
    """A lane message under another key."""
    try:
        return type(GrpcTransport(worker, f"{worker}:8001", worker, OTHER, TLS).call(message)).__name__
    except TandemError as error:
        return error.message


def call(worker: str, access: str | None, handle: str | None = None, output: tuple[int, ...] = ()) -> dict[str, str]:
    """A plain client's request: output tensors as text, or ``error``."""
    given = {"input_ids": PROMPT, "max_tokens": [4], "output_ids": list(output)}
    request = triton.ModelInferRequest(model_name=worker)
    for name, values in given.items():
        if values:
            request.inputs.add(name=name, datatype="INT32", shape=[1, len(values)])
            request.raw_input_contents.append(np.array(values, np.int32).tobytes())
    if handle is not None:
        request.inputs.add(name="kv_handle", datatype="BYTES", shape=[1, 1]).contents  # noqa: B018
        request.raw_input_contents.append(len(handle).to_bytes(4, "little") + handle.encode())
    if access is not None:
        request.parameters["access"].string_param = access
    target = [("grpc.ssl_target_name_override", WORKER_NAME)]
    with grpc.secure_channel(f"{worker}:8001", channel_credentials(TLS), target) as channel:
        stream = channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=triton.ModelInferRequest.SerializeToString,
            response_deserializer=triton.ModelStreamInferResponse.FromString,
        )
        answer: dict[str, str] = {}
        for response in stream(request, timeout=60):
            if response.error_message:
                return {"error": response.error_message}
            outputs = response.infer_response.outputs
            for tensor, data in zip(outputs, response.infer_response.raw_output_contents, strict=False):
                answer[tensor.name] = data[4:].decode() if tensor.datatype == "BYTES" else str(list(data))
                if tensor.name == "output_ids":
                    answer["ids"] = json.dumps(np.frombuffer(data, np.int32).tolist())
        return answer


def main(access: str) -> None:
    told = {
        "hello": send("decode", Hello()),
        "cancel": send("prefill", Cancel(request_ids=["x"])),
        "plain request": call("decode", None).get("error", "answered"),
        "guessed access": call("decode", access_word(bytes(32))).get("error", "answered"),
    }
    first = call("prefill", access)
    handle = base64.b64decode(first["kv_handle"])
    forged = base64.b64encode(handle[:-32] + OTHER.sign(handle[:-32])).decode()
    ids = tuple(json.loads(first["ids"]))
    told["forged handle"] = call("decode", access, forged, ids).get("error", "answered")
    told["true handle"] = call("decode", access, first["kv_handle"], ids).get("error", "answered")
    print(json.dumps(told))
