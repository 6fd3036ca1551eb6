"""Lane messages over gRPC, to a real server that speaks Triton's protocol and has a stage's manners."""

from __future__ import annotations

import concurrent.futures
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.lanes import grpc as module
from tandem.lanes.grpc import GrpcTransport
from tandem.lanes.seal import open_sealed
from tandem.messages import (
    BlocksStored,
    Done,
    Hello,
    KvReport,
    LaneReply,
    LaneRequest,
    Leave,
    Load,
    Poll,
    PollReply,
    decoder,
    encode,
)

DEADLINE_S = 20.0
KEYS = Keys([bytes(32)])
POLL = Poll(lane="l", wait_s=DEADLINE_S)


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves one stage model, ``decode_0``, that keeps polls until the test lets them go."""

    def __init__(self) -> None:
        self.seen: list[LaneRequest] = []
        self.polled, self.let_go = threading.Event(), threading.Event()
        self.kv: KvReport | None = None
        self._decoder = decoder(LaneRequest)
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)]
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            if request.model_name != "decode_0":
                yield service_pb2.ModelStreamInferResponse(error_message=f"unknown model: {request.model_name}")
                continue
            assert [output.name for output in request.outputs] == ["lane_reply"]
            assert list(request.inputs[0].shape) == [1, len(request.raw_input_contents[0])]
            reply = self._reply(
                self._decoder.decode(open_sealed(request.raw_input_contents[0], "decode_0", KEYS)), context
            )
            answer = service_pb2.ModelInferResponse(raw_output_contents=[encode(reply)])
            answer.outputs.add(name="lane_reply", datatype="UINT8")
            yield service_pb2.ModelStreamInferResponse(infer_response=answer)

    def _reply(self, request: LaneRequest, context: grpc.ServicerContext) -> LaneReply:
        self.seen.append(request)
        if not isinstance(request, Poll):
            return Done()
        self.polled.set()
        while not self.let_go.wait(0.01) and context.is_active():
            pass
        return PollReply(epoch=7, events=[], load=Load(queued=3), kv=self.kv)

    def stop(self) -> None:
        stopped = self._server.stop(0)
        self.let_go.set()
        stopped.wait(DEADLINE_S)


@pytest.fixture
def triton() -> Iterator[Triton]:
    server = Triton()
    yield server
    server.stop()


@pytest.fixture
def transport(triton: Triton) -> Iterator[GrpcTransport]:
    transport = GrpcTransport("decode_0", f"127.0.0.1:{triton.port}", "decode_0@there", KEYS)
    yield transport
    transport.close()


def polling(transport: GrpcTransport) -> concurrent.futures.Future[LaneReply]:
    """A poll in a thread of its own, as a lane's."""
    result: concurrent.futures.Future[LaneReply] = concurrent.futures.Future()

    def poll() -> None:
        try:
            result.set_result(transport.call(POLL))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=poll, daemon=True).start()
    return result


def test_a_poll_that_waits_holds_up_nobody(triton: Triton, transport: GrpcTransport) -> None:
    poll = polling(transport)
    assert triton.polled.wait(DEADLINE_S)
    for _ in range(100):
        assert transport.call(Hello()) == Done()
    assert not poll.done()
    triton.let_go.set()
    assert poll.result(DEADLINE_S) == PollReply(epoch=7, events=[], load=Load(queued=3))
    assert triton.seen == [POLL, *[Hello()] * 100]


def test_messages_of_many_megabytes_pass(triton: Triton, transport: GrpcTransport) -> None:
    long = Leave(lane="l" * 20_000_000)
    assert transport.call(long) == Done()
    assert triton.seen == [long]


def test_a_reply_that_cannot_be_read_says_where(triton: Triton, transport: GrpcTransport) -> None:
    triton.kv = KvReport(first=1, events=[BlocksStored(hashes=[1, -1])])
    triton.let_go.set()
    with pytest.raises(TandemError, match=r"cannot be read: Expected `int` >= 0 - at `\$\.kv\.events") as caught:
        transport.call(POLL)
    assert caught.value.code == "worker_lost"


def test_what_triton_says_is_passed_on(triton: Triton) -> None:
    transport = GrpcTransport("decode_9", f"127.0.0.1:{triton.port}", "decode_9@there", KEYS)
    with pytest.raises(TandemError, match="decode_9@there: unknown model: decode_9") as caught:
        transport.call(Hello())
    assert caught.value.code == "worker_lost"
    transport.close()


def test_who_does_not_answer_in_time_is_lost(
    triton: Triton, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    with pytest.raises(TandemError, match="decode_0@there does not answer: DEADLINE_EXCEEDED") as caught:
        transport.call(Poll(lane="l", wait_s=0.1))
    assert caught.value.code == "worker_lost"
    assert triton.polled.is_set()


def test_a_server_that_stops_is_noticed_by_the_poll_under_way(triton: Triton, transport: GrpcTransport) -> None:
    poll = polling(transport)
    assert triton.polled.wait(DEADLINE_S)
    triton.stop()
    with pytest.raises(TandemError, match="worker decode_0@there does not answer"):
        poll.result(DEADLINE_S)
    with pytest.raises(TandemError, match="does not answer: UNAVAILABLE"):
        transport.call(Hello())


def test_a_port_on_which_nobody_listens_is_noticed_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    transport = GrpcTransport("decode_0", f"127.0.0.1:{port}", "decode_0", KEYS)
    with pytest.raises(TandemError, match="UNAVAILABLE"):
        transport.call(Hello())
    transport.close()


def test_a_host_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a cable that was pulled: connections are taken by the kernel, and that is all."""
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = GrpcTransport("decode_0", f"127.0.0.1:{silent.getsockname()[1]}", "decode_0", KEYS)
        with pytest.raises(TandemError, match="does not answer"):
            transport.call(Hello())
        transport.close()


def test_closing_ends_what_is_under_way(triton: Triton, transport: GrpcTransport) -> None:
    poll = polling(transport)
    assert triton.polled.wait(DEADLINE_S)
    transport.close()
    with pytest.raises(TandemError, match="worker decode_0@there"):
        poll.result(DEADLINE_S)
    with pytest.raises(TandemError, match="worker decode_0@there"):
        transport.call(Hello())
