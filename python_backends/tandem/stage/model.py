"""The stage models: Triton's requests to a stage, lane messages and plain clients alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as pb_utils

from tandem.api.cancel_watch import CancelWatch
from tandem.api.tensors import Tensors, bytes_tensor, take_bytes
from tandem.deployment import load_deployment
from tandem.errors import TandemError
from tandem.keys import has_access, load_keys
from tandem.lanes.seal import open_sealed
from tandem.logs import start_logging
from tandem.messages import LaneReply, LaneRequest, decoder, encode
from tandem.metrics_bridge import MetricsBridge
from tandem.stage.direct import DirectAnswer, read_work, take_access
from tandem.stage.metrics import StageMetrics
from tandem.stage.record import WorkRecords
from tandem.stage.stage import Stage
from tandem.text.codec import TextCodec
from tandem.tracing.tracer import make_tracer
from tandem.triton.adapter import (
    TritonResponder,
    deployment_file,
    model_parameter,
    read_name_and_parameters,
    read_tensors,
)


class StageModel:
    """What Triton loads as ``prefill_0``, ``decode_1`` and so on."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine process and wait until it is ready."""
        file = deployment_file(args)
        deployment = load_deployment(file)
        worker = deployment.find_worker(model_parameter(args, "worker"))
        start_logging(deployment.logging, worker=worker.name)
        metrics = StageMetrics(worker.stage, worker.name)
        self._keys, self._is_private = load_keys(), deployment.server.private_stages
        self._limits = deployment.limits
        self._eos_ids = TextCodec(Path(deployment.model.path)).eos_token_ids
        self._decoder: msgspec.msgpack.Decoder[LaneRequest] = decoder(LaneRequest)
        self._bridge = MetricsBridge(metrics.registry, pb_utils, deployment=deployment.name)
        self._cancel_watch = CancelWatch()
        self._tracer = make_tracer(deployment.tracing, deployment.name, worker.name)
        records = WorkRecords(worker.name, self._tracer, deployment.logging.requests)
        self._stage = Stage(deployment, file, worker, metrics, records)
        try:
            self._stage.start()
        except TandemError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._cancel_watch.start()
        self._bridge.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand requests over; nothing may escape, for a client would wait for ever."""
        for request in requests:
            responder = TritonResponder(request)
            try:
                self._take(request, read_tensors(request), responder)
            except TandemError as error:
                responder.fail(error)
            except Exception as error:
                responder.fail(TandemError("engine_failed", f"internal error: {error!r}"))

    def finalize(self) -> None:
        """End the engine process and all threads."""
        self._stage.stop()
        self._cancel_watch.stop()
        self._bridge.stop()
        if self._tracer is not None:
            self._tracer.stop()

    def _take(self, request: Any, tensors: Tensors, responder: TritonResponder) -> None:
        lane_request = take_bytes(tensors, "lane_request")
        if lane_request is None:
            self._take_direct(request, tensors, responder)
            return

        def reply(message: LaneReply) -> None:
            responder.send({"lane_reply": bytes_tensor(encode(message))}, final=True)

        try:
            message = self._decoder.decode(open_sealed(lane_request, self._stage.worker.name, self._keys))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TandemError(
                "invalid_request", f"lane_request: {error}; expected a tandem.messages.LaneRequest"
            ) from error
        self._stage.handle(message, reply)

    def _take_direct(self, request: Any, tensors: Tensors, responder: TritonResponder) -> None:
        info = self._stage.info
        if info is None:
            raise TandemError("worker_lost", f"the engine of worker {self._stage.worker.name} is starting; try again")
        name, parameters = read_name_and_parameters(request)
        access, parameters = take_access(parameters)
        if self._is_private and not has_access(access, self._keys):
            raise TandemError(
                "forbidden",
                f"access: worker {self._stage.worker.name} is private; send the request to the gateway (model llm)",
            )
        ask, work = read_work(name, tensors, parameters, info, self._limits, self._eos_ids)
        answer = DirectAnswer(
            responder, stream=ask.stream, prompt_tokens=len(work.token_ids), output_tokens=len(work.output_ids)
        )

        request_id = self._stage.submit_direct(work, answer.take)
        self._cancel_watch.add(responder, lambda: self._stage.cancel([request_id]))
