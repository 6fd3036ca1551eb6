"""Everything behind the ``llm`` model: takes requests from Triton's thread, runs their journeys in one event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import msgspec

from tandem.api.answer import Facts, facts_tensors
from tandem.api.ask import Ask, read_ask, resolve_stopping
from tandem.api.cancel_watch import CancelWatch
from tandem.api.responder import Responder
from tandem.api.tensors import Tensors, take_bool, text_tensor
from tandem.deployment import Deployment
from tandem.drain import DrainMark
from tandem.errors import TandemError
from tandem.lanes.replica import Replica
from tandem.lanes.transport import Transport
from tandem.orchestrator.admission import Admission
from tandem.orchestrator.admission_metrics import AdmissionMetrics
from tandem.orchestrator.attempt import Deadlines
from tandem.orchestrator.fleet import Fleet
from tandem.orchestrator.gate import Gate
from tandem.orchestrator.hedging import Hedging
from tandem.orchestrator.journey import Journey
from tandem.orchestrator.metrics import OrchestratorMetrics
from tandem.orchestrator.prompt import read_prompt, text_size
from tandem.routing.explain import explain
from tandem.text.codec import TextCodec
from tandem.tracing.tracer import Tracer

log = logging.getLogger(__name__)

LONG_TEXT = 20_000
"""Characters beyond which tokenizing would hold up the event loop."""
DRAIN_S = 5.0
"""Time that running requests get to end by themselves, and then to hear that they do not. Those of a gateway alone have
``limits.drain_s`` for both."""
DRAIN_POLL_S = 0.1
TELL_S = 1.0
"""Between two looks at the workers' states, for metrics."""
STOP_TIMEOUT_S = 2.0


class Orchestrator:
    """One per ``llm`` model instance."""

    def __init__(
        self,
        deployment: Deployment,
        codec: TextCodec,
        transport: Callable[[Replica], Transport],
        metrics: OrchestratorMetrics,
        drain_mark: DrainMark,
        tracer: Tracer | None = None,
    ) -> None:
        self._limits, self._deadlines = deployment.limits, Deadlines.of(deployment)
        self._hedging = Hedging(deployment.limits)
        self._codec = codec
        self._metrics = metrics
        self._drain_mark = drain_mark
        self._tracer, self._is_logged = tracer, deployment.logging.requests
        self._draining = False
        self._drain_s = DRAIN_S if deployment.workers_here else max(DRAIN_S, deployment.limits.drain_s - DRAIN_S)
        self._fleet = Fleet(deployment, transport)
        self._gate = Gate(Admission(deployment.limits, self._fleet.room), AdmissionMetrics(metrics.registry))
        self._journeys: dict[int, Journey] = {}
        self._loop = asyncio.new_event_loop()
        self._cancel_watch = CancelWatch()
        self._thread = threading.Thread(target=self._run_loop, name="orchestrator", daemon=True)

    def start(self) -> None:
        """Start the event loop and open the lanes."""
        self._drain_mark.opened()
        self._thread.start()
        self._cancel_watch.start()
        self._loop.call_soon_threadsafe(self._fleet.start)
        self._watch_task = asyncio.run_coroutine_threadsafe(self._tell_workers(), self._loop)
        self._drain_task = asyncio.run_coroutine_threadsafe(self._drain_when_asked(), self._loop)

    def stop(self) -> None:
        """End the event loop. Lanes are closed by now, where the server was stopped through the drain mark."""
        self._cancel_watch.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)

    def take(self, request_id: str, tensors: Tensors, parameters: str, responder: Responder) -> None:
        """Take one request from Triton; returns at once, the answer goes through ``responder``."""
        try:
            if take_bool(tensors, "stop"):
                self._loop.call_soon_threadsafe(self._cancel_by_id, request_id, responder)
                return
            ask = read_ask(request_id, tensors, parameters)
            if self._draining:
                raise TandemError("overloaded", "the server is shutting down; send the request to another one")
            if ask.explain:
                asyncio.run_coroutine_threadsafe(self._explain(ask, responder), self._loop)
                return
        except TandemError as error:
            self._metrics.failed(error.code)
            responder.fail(error)
            return
        journey = Journey(
            ask,
            responder,
            fleet=self._fleet,
            gate=self._gate,
            codec=self._codec,
            read_prompt=self._read_prompt,
            limits=self._limits,
            deadlines=self._deadlines,
            hedging=self._hedging,
            metrics=self._metrics,
            tracer=self._tracer,
            is_logged=self._is_logged,
        )
        self._journeys[id(journey)] = journey
        self._loop.call_soon_threadsafe(self._begin, journey)

    # -------------------------------------------------------------- in the event loop

    def _begin(self, journey: Journey) -> None:
        task = self._loop.create_task(journey.run())
        self._metrics.in_flight.set(len(self._journeys))
        self._cancel_watch.add(journey.responder, lambda: self._in_loop(journey.cancel))

        def forget(_: asyncio.Task[None]) -> None:
            del self._journeys[id(journey)]
            self._metrics.in_flight.set(len(self._journeys))

        task.add_done_callback(forget)

    async def _read_prompt(self, ask: Ask, max_model_len: int) -> list[int]:
        if text_size(ask) <= LONG_TEXT:
            return read_prompt(ask, self._codec, max_model_len)
        return await self._loop.run_in_executor(None, read_prompt, ask, self._codec, max_model_len)

    async def _explain(self, ask: Ask, responder: Responder) -> None:
        """What the router would decide now, as JSON in ``text_output``; nothing is sent to a worker."""
        try:
            max_model_len = await self._fleet.max_model_len()
            prompt = await self._read_prompt(ask, max_model_len)
            defaults = self._limits.default_max_tokens, self._codec.eos_token_ids
            stopping = resolve_stopping(ask, len(prompt), max_model_len, *defaults)
            plan = await self._fleet.plan(self._fleet.query(prompt, stopping.max_tokens, ask.tenant))
            responder.send({"text_output": text_tensor(msgspec.json.encode(explain(plan)))}, final=True)
        except TandemError as error:
            responder.fail(error)
        except Exception as error:
            log.exception("a routing decision cannot be explained")
            responder.fail(TandemError("engine_failed", f"internal error: {error}"))

    def _cancel_by_id(self, request_id: str, responder: Responder) -> None:
        """Cancel every running request with this id; an unknown one is an error."""
        found = [j for j in self._journeys.values() if request_id and j.ask.request_id == request_id]
        for journey in found:
            journey.cancel()
        if found:
            facts = Facts(finish_reason="cancelled", num_input_tokens=0, num_output_tokens=0)
            responder.send({"text_output": text_tensor("")} | facts_tensors(facts), final=True)
        else:
            responder.fail(TandemError("not_found", f"stop: no request with id {request_id!r} is running"))

    async def _tell_workers(self) -> None:
        """Keep what is shown of the workers true."""
        while True:
            self._metrics.workers(self._fleet.workers)
            await asyncio.sleep(TELL_S)

    async def _drain_when_asked(self) -> None:
        """Once asked: no new requests, time for the running ones to end, then close the lanes."""
        while not self._drain_mark.asked:
            await asyncio.sleep(DRAIN_POLL_S)
        self._draining = True
        if not await self._all_ended(self._drain_s):
            for journey in self._journeys.values():
                journey.interrupt(TandemError("worker_lost", "the server is shutting down"))
            await self._all_ended(DRAIN_S)
        self._cancel_watch.stop()
        self._watch_task.cancel()
        await asyncio.to_thread(self._fleet.stop)
        self._drain_mark.closed()

    async def _all_ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._journeys and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
        return not self._journeys

    def _in_loop(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
