"""gRPC without the client library's work per response: requests are made beforehand, responses read as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from live.events import Event, read_grpc_response

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcClient:
    """``async with GrpcClient("127.0.0.1:8001") as client:``; any number of streams at a time, one per request."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> GrpcClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def ask(
        self, request: service_pb2.ModelInferRequest, on_event: Callable[[Event], None], timeout_s: float
    ) -> None:
        """Send a request and read its stream to the end; ``on_event`` hears each response as it comes.

        Raises:
            grpc.aio.AioRpcError: the call failed, or took longer than ``timeout_s``.
        """

        async def requests() -> AsyncIterator[service_pb2.ModelInferRequest]:
            yield request

        async for response in self._stub.ModelStreamInfer(requests(), timeout=timeout_s):
            event, _ = read_grpc_response(response)
            on_event(event)
