"""One journey under way, with its client and its workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tandem.api.ask import Ask
from tandem.deployment import Limits
from tandem.messages import Finished, FinishReason, Prefilled, Pulled, Sampling, StageName, Tokens
from tandem.orchestrator.admission import Admission
from tandem.orchestrator.admission_metrics import AdmissionMetrics
from tandem.orchestrator.attempt import Deadlines
from tandem.orchestrator.gate import Gate
from tandem.orchestrator.hedging import Hedging
from tandem.orchestrator.journey import Journey
from tandem.orchestrator.metrics import OrchestratorMetrics
from tandem.orchestrator.prompt import read_prompt
from tandem.text.codec import TextCodec
from tandem.tracing.tracer import Tracer
from tests.unit.api.channel import Channel
from tests.unit.orchestrator.workers import Lane, Workers

DEADLINE_S = 20.0
TEXT = "The quick dog"


class Trip:
    """One journey under way, with its client and its workers."""

    def __init__(
        self,
        codec: TextCodec,
        *,
        each: int = 1,
        limits: Limits | None = None,
        handover_s: float = 60.0,
        make_lane: Callable[[StageName, int], Lane] = Lane,
        tracer: Tracer | None = None,
        is_logged: bool = False,
        **fields: Any,
    ) -> None:
        given: dict[str, Any] = {"token_ids": [5, 6, 7], "stream": True, "sampling": Sampling(), "request_id": "mine"}
        limits = limits or Limits()
        self.hedging = Hedging(limits)
        self.client, self.workers = Channel(), Workers(each, make_lane)
        self.metrics = OrchestratorMetrics()
        self.admission = Admission(limits, self.workers.router.room)
        self.gate = Gate(self.admission, AdmissionMetrics(self.metrics.registry))
        self.read_started, self.may_read = asyncio.Event(), asyncio.Event()
        self.may_read.set()
        self.codec = codec
        self.answer_ids = codec.encode(TEXT, add_special_tokens=False)
        assert len(self.answer_ids) >= 3
        self.journey = Journey(
            Ask(**given | fields),
            self.client,
            fleet=self.workers,  # type: ignore[arg-type]
            gate=self.gate,
            codec=codec,
            read_prompt=self._read,
            limits=limits,
            deadlines=Deadlines(limits.prefill_timeout_s, handover_s, limits.decode_timeout_s),
            hedging=self.hedging,
            metrics=self.metrics,
            tracer=tracer,
            is_logged=is_logged,
        )

    async def _read(self, ask: Ask, max_model_len: int) -> list[int]:
        self.read_started.set()
        await self.may_read.wait()
        return read_prompt(ask, self.codec, max_model_len)

    @property
    def prefill(self) -> Lane:
        return self.workers.prefill

    @property
    def decode(self) -> Lane:
        return self.workers.decode

    @property
    def id(self) -> str:
        return self.prefill.work[0].request_id

    def start(self) -> None:
        self.task = asyncio.ensure_future(self.journey.run())

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0)

    async def end(self) -> None:
        await asyncio.wait_for(self.task, DEADLINE_S)
        assert self.client.closed
        assert self.workers.idle()
        assert not self.admission.in_flight
        assert not self.admission.queue

    async def reach_prefill(self) -> None:
        self.start()
        await self.until(lambda: self.prefill.work)

    async def reach_decode(self) -> None:
        await self.reach_prefill()
        self.prefill.say(self.tokens(0, 1), Prefilled(request_id=self.id, handle=b"ticket", cached_tokens=2))
        await self.until(lambda: self.decode.work)

    def tokens(self, begin: int, end: int) -> Tokens:
        return Tokens(request_id="", index=begin, token_ids=self.answer_ids[begin:end])

    def finished(self, reason: FinishReason = "length") -> Finished:
        return Finished(request_id="", reason=reason)

    def pulled(self) -> Pulled:
        return Pulled(request_id="", bytes_moved=4096, seconds=0.5)

    def count(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("tandem_requests_total", {"outcome": outcome})


def travel(test: Callable[[Trip], Awaitable[None]], codec: TextCodec, **fields: Any) -> Trip:
    async def run() -> Trip:
        trip = Trip(codec, **fields)
        await test(trip)
        return trip

    return asyncio.run(run())
