"""How users speak with the server under gevent: HTTP server-sent events, or gRPC ``ModelStreamInfer``."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from geventhttpclient import HTTPClient
from live.events import Event, decode_json, read_grpc_response, to_grpc_request, to_json_body
from tritonclient.grpc import service_pb2_grpc

TIMEOUT_S = 300.0
"""Between two bytes over HTTP, for a whole request over gRPC."""
MODEL = "llm"

Events = Generator[Event, None, None]
"""The responses of one request; whoever closes it before its end leaves the stream."""


class Transport(Protocol):
    """One user's way to the server."""

    label: str
    """What locust shows as the type of its requests."""

    def stream(self, inputs: dict[str, Any], parameters: dict[str, str | int]) -> Events:
        """Send a request to ``llm``."""
        ...

    def close(self) -> None:
        """The user is gone."""
        ...


class HttpTransport:
    """``generate_stream``, on a kept connection."""

    label = "HTTP"

    def __init__(self, url: str) -> None:
        """``url``: base of Triton's HTTP API."""
        parts = urlsplit(url)
        self._client = HTTPClient(
            parts.hostname or url, parts.port, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S
        )

    def stream(self, inputs: dict[str, Any], parameters: dict[str, str | int]) -> Events:
        """As ``Transport.stream``."""
        body, headers = to_json_body(inputs, parameters), {"Content-Type": "application/json"}
        response = self._client.post(f"/v2/models/{MODEL}/generate_stream", body, headers)
        try:
            while line := response.readline(b"\n\n"):
                if data := bytes(line).strip().removeprefix(b"data:"):
                    yield decode_json(data)
        finally:
            response.release()  # closes the connection where the stream was not read to its end

    def close(self) -> None:
        """As ``Transport.close``."""
        self._client.close()


class GrpcTransport:
    """One stream for each request, as ``tritonclient`` has them, without its threads. ``init_gevent`` comes first."""

    label = "gRPC"

    def __init__(self, url: str) -> None:
        """``url``: host and port."""
        self._channel = grpc.insecure_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def stream(self, inputs: dict[str, Any], parameters: dict[str, str | int]) -> Events:
        """As ``Transport.stream``."""
        call = self._stub.ModelStreamInfer(iter([to_grpc_request(MODEL, inputs, parameters)]), timeout=TIMEOUT_S)
        try:
            for response in call:
                yield read_grpc_response(response)[0]
        finally:
            call.cancel()  # of no effect where the stream was read to its end

    def close(self) -> None:
        """As ``Transport.close``."""
        self._channel.close()
