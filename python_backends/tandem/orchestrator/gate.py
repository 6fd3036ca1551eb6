"""Admission in an event loop: requests wait here until they may go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tandem.orchestrator.admission import Admission, Demand, Prospect, Refusal, Ticket
from tandem.orchestrator.admission_metrics import AdmissionMetrics
from tandem.routing.disaggregation import Waiting

TICK_S = 0.005
"""While somebody waits, it is looked so often whether the workers have got room."""
SHOW_S = 0.25
"""Gauges are brought up to date no more often."""


class Gate:
    """The way to the workers. Lives in the orchestrator's event loop."""

    def __init__(
        self, admission: Admission, metrics: AdmissionMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock`` gives seconds that never run backwards."""
        self._admission, self._metrics, self._clock = admission, metrics, clock
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._show_at = 0.0

    def check(self, priority: int, tenant: str) -> None:
        """Whether a request of any length could still be taken in.

        Raises:
            Refusal: it could not.
        """
        try:
            self._admission.check(priority, tenant, self._clock())
        except Refusal as refusal:
            self._metrics.refused(refusal.reason, tenant)
            raise

    def enter(self, demand: Demand, time_left_s: float, foresee: Callable[[Waiting], Prospect | None]) -> Ticket:
        """Take a request in; as ``Admission.enter``. Whoever has a ticket calls ``leave`` in the end."""
        try:
            ticket, displaced = self._admission.enter(demand, self._clock(), time_left_s, foresee)
        except Refusal as refusal:
            self._metrics.refused(refusal.reason, demand.tenant)
            raise
        if ticket.state == "waiting":
            self._waiting[ticket] = asyncio.get_running_loop().create_future()
        else:
            self._metrics.admitted(ticket.priority, 0.0)
        if displaced is not None:
            self._refuse(displaced, self._admission.displaced())
        self._pump()
        return ticket

    async def admitted(self, ticket: Ticket) -> None:
        """Wait until the request may go on.

        Raises:
            Refusal: it has waited too long, or had to make room.
        """
        if (future := self._waiting.get(ticket)) is not None:
            await future

    def booked(self, ticket: Ticket) -> None:
        """The router counts from now on what the request takes of the workers."""
        self._admission.booked(ticket)

    def leave(self, ticket: Ticket) -> None:
        """The request has ended, however it did; may be called again."""
        if (future := self._waiting.pop(ticket, None)) is not None:
            future.cancel()
        self._admission.leave(ticket)
        self._pump()

    def _pump(self) -> None:
        """Let go who may go, and turn away who has waited too long; look again soon while anybody waits."""
        now = self._clock()
        for ticket in self._admission.expire(now):
            self._refuse(ticket, self._admission.waited())
        for ticket in self._admission.admit(now):
            self._metrics.admitted(ticket.priority, now - ticket.entered)
            if not (future := self._waiting.pop(ticket)).done():
                future.set_result(None)
        if now >= self._show_at or not self._admission.queue:
            self._show_at = now + SHOW_S
            self._metrics.show(self._admission)
        if self._admission.queue and self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._look_again)

    def _look_again(self) -> None:
        self._tick = None
        self._pump()

    def _refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        self._metrics.refused(refusal.reason, ticket.tenant)
        future = self._waiting.pop(ticket)
        if not future.done():
            future.set_exception(refusal)
