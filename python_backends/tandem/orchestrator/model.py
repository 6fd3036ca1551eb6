"""The ``llm`` model: Triton's requests to the orchestrator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.deployment import Tls, load_deployment
from tandem.drain import DrainMark
from tandem.errors import TandemError
from tandem.keys import Keys, load_keys
from tandem.lanes.bls import BlsTransport
from tandem.lanes.grpc import GrpcTransport
from tandem.lanes.replica import Replica
from tandem.lanes.transport import Transport
from tandem.logs import start_logging
from tandem.metrics_bridge import MetricsBridge
from tandem.orchestrator.metrics import OrchestratorMetrics
from tandem.orchestrator.orchestrator import Orchestrator
from tandem.text.codec import TextCodec
from tandem.tracing.tracer import make_tracer
from tandem.triton.adapter import TritonResponder, deployment_file, read_name_and_parameters, read_tensors


class OrchestratorModel:
    """What Triton loads as ``llm``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the deployment; nothing is called yet (see ``execute``)."""
        file = deployment_file(args)
        deployment = load_deployment(file)
        start_logging(deployment.logging, worker="llm")
        metrics = OrchestratorMetrics()
        self._bridge = MetricsBridge(metrics.registry, pb_utils, deployment=deployment.name)
        self._tracer = make_tracer(deployment.tracing, deployment.name, "llm")
        self._orchestrator = Orchestrator(
            deployment,
            TextCodec(Path(deployment.model.path)),
            partial(_make_transport, load_keys(), deployment.tls),
            metrics,
            DrainMark(file.parent, "llm"),
            self._tracer,
        )
        self._started = False

    def execute(self, requests: list[Any]) -> None:
        """Hand requests over; nothing may escape, for a client would wait for ever."""
        self._start_once()
        for request in requests:
            responder = TritonResponder(request)
            try:
                tensors = read_tensors(request)
                request_id, parameters = read_name_and_parameters(request)
                self._orchestrator.take(request_id, tensors, parameters, responder)
            except TandemError as error:
                responder.fail(error)
            except Exception as error:
                responder.fail(TandemError("engine_failed", f"internal error: {error!r}"))

    def _start_once(self) -> None:
        """Open the lanes at the first request: Triton 2.51 crashes on a BLS call that a thread makes before
        ``initialize`` has returned, when the pool that would run the call is not there yet."""
        if not self._started:
            self._started = True
            self._bridge.start()
            self._orchestrator.start()

    def finalize(self) -> None:
        """End the threads. The lanes are closed already, for Triton is stopped through the drain mark."""
        if not self._started:
            return
        self._orchestrator.stop()
        self._bridge.stop()
        if self._tracer is not None:
            self._tracer.stop()


def _make_transport(keys: Keys, tls: Tls | None, replica: Replica) -> Transport:
    """BLS to a model of this Triton, gRPC to one of another."""
    if replica.address is None:
        return BlsTransport(replica.worker.name, pb_utils, keys)
    return GrpcTransport(replica.worker.name, replica.address, replica.name, keys, tls)
