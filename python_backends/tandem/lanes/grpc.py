"""Lane messages to a stage model on another Triton, through gRPC (KServe v2).

A stage model is decoupled, and Triton answers such models on ``ModelStreamInfer`` alone; so each call is a stream of
its own with one request and one response. All calls of a worker share one connection, on which a poll that waits holds
up nobody.
"""

from __future__ import annotations

import grpc
import msgspec
from tritonclient.grpc import service_pb2 as triton

from tandem.deployment import Tls
from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.lanes.seal import seal
from tandem.messages import LaneReply, LaneRequest, Poll, decoder, encode
from tandem.tls import WORKER_NAME, channel_credentials

ANSWER_S = 5.0
"""For every call, beyond the time that a poll may wait."""
PING_EVERY_S = 2.0
"""As often a connection is asked whether it still is one. The server must allow it, see ``triton/command.py``."""
PING_ANSWER_S = 2.0
CONNECT_S = 2.0
RECONNECT_S = 1.0

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_OPTIONS = {
    "grpc.keepalive_time_ms": 1000 * PING_EVERY_S,
    "grpc.keepalive_timeout_ms": 1000 * PING_ANSWER_S,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.min_reconnect_backoff_ms": 1000 * CONNECT_S,  # the time that one attempt has
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 1000 * RECONNECT_S,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,  # snapshots of a prefix cache have megabytes
    "grpc.use_local_subchannel_pool": 1,  # else lanes of one server would share a connection, and its back-off
    "grpc.enable_http_proxy": 0,
}


class GrpcTransport:
    """Calls the stage model ``model_name`` of the Triton at ``address`` (host:port). ``name`` stands in errors."""

    def __init__(self, model_name: str, address: str, name: str, keys: Keys, tls: Tls | None = None) -> None:
        """With ``tls`` each end shows the other its certificate, and the server's must be a worker's.

        Raises:
            TandemError: ``invalid_request``: a file of ``tls`` cannot be read.
        """
        self._model_name, self._name, self._keys = model_name, name, keys
        options = [(key, int(value)) for key, value in _OPTIONS.items()]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            target = ("grpc.ssl_target_name_override", WORKER_NAME)
            self._channel = grpc.secure_channel(address, channel_credentials(tls), [*options, target])
        # The stream of requests has just one: to the server that is the same, and here it saves a thread for each call.
        self._call = self._channel.unary_stream(
            _METHOD,
            request_serializer=triton.ModelInferRequest.SerializeToString,
            response_deserializer=triton.ModelStreamInferResponse.FromString,
        )
        self._decoder: msgspec.msgpack.Decoder[LaneReply] = decoder(LaneReply)

    def call(self, request: LaneRequest) -> LaneReply:
        """Send one lane message and wait for its one reply (see ``Transport``)."""
        deadline_s = ANSWER_S + (request.wait_s if isinstance(request, Poll) else 0.0)
        try:
            # To its end: Triton keeps something of every stream that is left before.
            responses = list(self._call(self._to_inference(request), timeout=deadline_s))
        except grpc.RpcError as error:
            raise TandemError("worker_lost", f"worker {self._name} does not answer: {_reason(error)}") from error
        except ValueError as error:  # the channel was closed
            raise TandemError("worker_lost", f"worker {self._name}: {error}") from error
        for response in responses:
            if response.error_message:
                raise TandemError("worker_lost", f"worker {self._name}: {response.error_message}")
            if response.infer_response.raw_output_contents:
                return self._decode(response.infer_response.raw_output_contents[0])
        raise TandemError("worker_lost", f"worker {self._name} gave no reply")

    def close(self) -> None:
        """Give up the connection; calls under way end with an error."""
        self._channel.close()

    def _to_inference(self, request: LaneRequest) -> triton.ModelInferRequest:
        data = seal(encode(request), self._model_name, self._keys)
        tensor = triton.ModelInferRequest.InferInputTensor(name="lane_request", datatype="UINT8", shape=[1, len(data)])
        wanted = triton.ModelInferRequest.InferRequestedOutputTensor(name="lane_reply")
        return triton.ModelInferRequest(
            model_name=self._model_name, inputs=[tensor], outputs=[wanted], raw_input_contents=[data]
        )

    def _decode(self, data: bytes) -> LaneReply:
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as error:
            raise TandemError("worker_lost", f"worker {self._name}: its reply cannot be read: {error}") from error


def _reason(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if code and details else str(error)
