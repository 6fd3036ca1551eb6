"""A fleet behind an orchestrator on a simulated clock: what happens when.

Admission, router and workers are the real code. What is simulated is the time that steps, transfers and messages take,
and the orchestrator's journey, of which only the order of things is kept: admit, route, prefill, hand over, decode.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tandem.deployment import Limits, Routing
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    KvEvent,
    KvReport,
    Lender,
    Load,
    Prefill,
    Prefilled,
    Sampling,
    StageName,
    Stopping,
    Tokens,
)
from tandem.orchestrator.admission import Admission, Demand, Reason, Refusal, Ticket
from tandem.routing.disaggregation import Waiting
from tandem.routing.router import Plan, Route, Router
from tandem.simulation.fleet import Clock, WorkerPlan, make_fleet
from tandem.simulation.oracle import SharedCache, SharedView
from tandem.simulation.results import Results, Tally, balance
from tandem.simulation.trace import Arrival

POLL_S = 1.0
"""A worker that has nothing to say is heard of as often all the same, as its polls are answered then."""
PATIENT = Limits(max_queue_s=1e6, max_waiting=1_000_000)
"""Nobody is refused."""
MESSAGE_S = 0.5e-3
"""From the orchestrator to a worker or back: a call of one Triton, or a hop in a data centre."""


@dataclass(eq=False)
class _Request:
    arrival: Arrival
    ticket: Ticket
    prompt: list[int]
    output: list[int]
    route: Route = field(init=False)
    places: dict[str, int] = field(default_factory=dict)
    """Of its workers, by stage."""
    keeps: bool = True
    """Whether the decode worker keeps its KV."""
    last_token_at: float | None = None


class Cluster:
    """One simulation, to be run once."""

    def __init__(
        self,
        plan: WorkerPlan,
        prefill: int,
        decode: int,
        routing: Routing,
        seed: int = 0,
        *,
        limits: Limits = PATIENT,
    ) -> None:
        """``prefill`` and ``decode`` many workers."""
        self._clock, self._policy = Clock(), routing.policy
        self.workers = make_fleet(plan, prefill, decode, self._clock, self._redeemed)
        """By place."""
        self._places = {worker.info.worker_id: place for place, worker in enumerate(self.workers)}
        self._num_prefill = prefill
        self._router = Router(routing, plan.block_size, seed)
        self._admission = Admission(limits, self._router.room)
        self._next_change = [1] * len(self.workers)
        """By place: number of the next change of its worker's prefix cache."""
        self._join()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wake_at: list[float | None] = [None] * len(self.workers)
        """By place: when its worker is to be called next."""
        self._loads = [worker.load for worker in self.workers]
        """As last reported."""
        self._heard_at = [0.0] * len(self.workers)
        self._requests: dict[str, _Request] = {}
        self._waiting: dict[Ticket, Arrival] = {}
        self._tally = Tally()
        self._held, self._shared = SharedView(), SharedCache()

    def run(self, traffic: Iterable[Arrival]) -> Results:
        """All of ``traffic``, which comes in the order of its arrival, until its last answer has ended.

        Raises:
            RuntimeError: one never ends.
        """
        began = time.monotonic()
        self._arrivals = iter(traffic)
        self._expect_next()
        self._poll()
        while self._agenda:
            self._clock.now, _, act = heapq.heappop(self._agenda)
            act()
        if left := len(self._requests) + len(self._waiting):
            raise RuntimeError(f"nothing happens any more, and {left} requests have not ended")
        return self._results(time.monotonic() - began)

    def _join(self) -> None:
        """Introduce all workers to the router."""
        names = [worker.info.worker_id for worker in self.workers]
        for name, worker in zip(names, self.workers, strict=True):
            self._router.add(name, worker.info.stage)
            self._router.join(name, worker.info, worker.load)
            self._router.report(name, worker.info.epoch, worker.load, KvReport(first=0, events=[], is_snapshot=True))
        for place, reader in enumerate(names[: self._num_prefill]):
            for other in names[place + 1 :]:
                self._router.pair(reader, other)

    # ------------------------------------------------------------ the clock

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._numbers), act))

    def _expect_next(self) -> None:
        """Put the next request on the agenda, if there is one."""
        if (arrival := next(self._arrivals, None)) is not None:
            self._at(arrival.at, partial(self._arrive, arrival))

    def _poll(self) -> None:
        """Have silent workers report, for as long as there is anything else to do."""
        now = self._clock.now
        for place, heard in enumerate(self._heard_at):
            if now - heard >= POLL_S:
                self._hear(place, [], [], self._loads[place])
        if self._agenda:
            self._at(now + POLL_S, self._poll)

    # ------------------------------------------------------------ requests

    def _arrive(self, arrival: Arrival) -> None:
        self._expect_next()
        self._tally.requests += 1
        try:
            ticket, displaced = self._admission.enter(
                self._demand(arrival), self._clock.now, foresee=partial(self._plan, arrival)
            )
        except Refusal as refusal:
            self._tally.refused[refusal.reason] += 1
            return
        if displaced is not None:
            self._refuse(displaced, "displaced")
        if ticket.state == "admitted":
            self._let_go(ticket, arrival)
            return
        self._waiting[ticket] = arrival
        self._admit()

    def _demand(self, arrival: Arrival) -> Demand:
        return Demand(
            priority=arrival.priority,
            tenant=arrival.tenant,
            prompt_tokens=arrival.num_tokens,
            max_tokens=arrival.output_tokens,
            blocks=self._router.blocks_for(arrival.num_tokens, arrival.output_tokens),
        )

    def _admit(self) -> None:
        """Let go who may go, and turn away who has waited too long."""
        now = self._clock.now
        for ticket in self._admission.expire(now):
            self._refuse(ticket, "waited")
        for ticket in self._admission.admit(now):
            self._let_go(ticket, self._waiting.pop(ticket))
        self._tally.most_waiting = max(self._tally.most_waiting, len(self._waiting))

    def _let_go(self, ticket: Ticket, arrival: Arrival) -> None:
        self._set_out(_Request(arrival, ticket, arrival.prompt(), []))
        self._admission.booked(ticket)

    def _refuse(self, ticket: Ticket, reason: Reason) -> None:
        del self._waiting[ticket]
        self._tally.refused[reason] += 1

    def _plan(self, arrival: Arrival, waiting: Waiting) -> Plan:
        return self._router.plan(
            arrival.hashes, arrival.num_tokens, arrival.output_tokens, self._clock.now, waiting=waiting
        )

    def _set_out(self, request: _Request) -> None:
        arrival, now = request.arrival, self._clock.now
        plan = self._plan(arrival, request.ticket.passed)
        request.route, request.keeps = self._router.commit(plan, now), plan.keeps("decode")
        names = dict(zip(("prefill", "decode"), plan.workers, strict=True))
        request.places = {stage: self._places[name] for stage, name in names.items() if name is not None}
        self._requests[arrival.request_id] = request
        self._ask_oracles(arrival)
        if request.route.prefill is None:
            self._tally.whole += 1
            self._send("decode", request, Generate(**self._fields(request)))
        else:
            lender = Lender(worker_id=plan.loan[0], num_tokens=plan.loan[1]) if plan.loan else None
            self._send("prefill", request, Prefill(**self._fields(request), lender=lender, keeps=plan.keeps("prefill")))

    def _ask_oracles(self, arrival: Arrival) -> None:
        free = sum(load.blocks_total - load.blocks_used - load.blocks_cached for load in self._loads)
        self._tally.prompt_tokens += arrival.num_tokens
        self._tally.held_tokens += self._held.find(arrival.hashes, arrival.num_tokens)
        self._tally.shared_tokens += self._shared.take(arrival, free + self._held.size)

    def _fields(self, request: _Request) -> dict[str, Any]:
        arrival = request.arrival
        return {
            "request_id": arrival.request_id,
            "salt": arrival.tenant,
            "priority": arrival.priority,
            "token_ids": request.prompt,
            "output_ids": list(request.output),
            "sampling": Sampling(),
            "stopping": Stopping(max_tokens=max(1, arrival.output_tokens)),
        }

    def _send(self, stage: StageName, request: _Request, work: AnyWork) -> None:
        self._at(self._clock.now + MESSAGE_S, partial(self._receive, stage, request, work))

    def _receive(self, stage: StageName, request: _Request, work: AnyWork) -> None:
        place = request.places[stage]
        self.workers[place].submit([work], self._clock.now)
        request.route.sent(stage)
        self._advance(place)

    # ------------------------------------------------------------ workers

    def _advance(self, place: int) -> None:
        """Let a worker do what is due; put what it says, and its next step, on the agenda."""
        worker, now = self.workers[place], self._clock.now
        while True:
            events, kv, load = worker.advance(now), worker.take_kv_events(), worker.load
            self._held.take(kv)
            if events or kv or load != self._loads[place]:
                self._loads[place] = load
                self._at(now + MESSAGE_S, partial(self._hear, place, events, kv, load))
            next_at = worker.next_at
            if next_at is None or next_at > now:
                break
        if next_at != self._wake_at[place]:
            self._wake_at[place] = next_at
            if next_at is not None:
                self._at(next_at, partial(self._wake, place, next_at))

    def _wake(self, place: int, at: float) -> None:
        if self._wake_at[place] == at:  # else it has been called for something else meanwhile
            self._wake_at[place] = None
            self._advance(place)

    def _redeemed(self, worker_id: str) -> None:
        """Blocks of a prefill worker came free."""
        self._at(self._clock.now, partial(self._advance, self._places[worker_id]))

    # ------------------------------------------------------------ what workers say

    def _hear(self, place: int, events: list[EngineEvent], kv: list[KvEvent], load: Load) -> None:
        self._heard_at[place] = self._clock.now
        info, report = self.workers[place].info, None
        if kv:
            report = KvReport(first=self._next_change[place], events=kv)
            self._next_change[place] += len(kv)
        self._router.report(info.worker_id, info.epoch, load, report)
        for event in events:
            request = self._requests[event.request_id]
            match event:
                case Tokens():
                    self._take_token(request, event)
                case Prefilled():
                    self._hand_over(request, event)
                case Finished():
                    self._tally.cached_tokens += event.cached_tokens
                    self._end(request, None)
                case Failed():
                    self._end(request, event.code)
        self._admit()

    def _take_token(self, request: _Request, event: Tokens) -> None:
        now = self._clock.now
        if request.last_token_at is None:
            self._tally.ttft.add(now - request.arrival.at)
            request.route.first_token()
            request.output += event.token_ids
        else:
            count = len(event.token_ids)
            self._tally.inter_token.add((now - request.last_token_at) / count, count)
        request.last_token_at = now
        self._tally.output_tokens += len(event.token_ids)

    def _hand_over(self, request: _Request, event: Prefilled) -> None:
        self._tally.cached_tokens += event.cached_tokens
        request.route.released()
        if event.handle is None:
            self._end(request, None)
        else:
            self._send("decode", request, Decode(**self._fields(request), handle=event.handle, keeps=request.keeps))

    def _end(self, request: _Request, failure: str | None) -> None:
        del self._requests[request.arrival.request_id]
        request.route.end()
        self._admission.leave(request.ticket)
        if failure is None:
            self._tally.finished += 1
            self._router.answered(request.arrival.output_tokens, request.arrival.output_tokens)
            self._tally.tokens_of[request.arrival.tenant] += request.arrival.num_tokens + request.arrival.output_tokens
        else:
            self._tally.failed[failure] += 1

    # ------------------------------------------------------------ the end

    def _results(self, wall_s: float) -> Results:
        now, tally, split = self._clock.now, self._tally, self._num_prefill
        busy = [load.step_seconds for load in self._loads]
        return Results(
            policy=self._policy,
            prefill_workers=split,
            decode_workers=len(busy) - split,
            requests=tally.requests,
            finished=tally.finished,
            failed=dict(tally.failed),
            whole=tally.whole,
            ttft=tally.ttft.summary(),
            inter_token=tally.inter_token.summary(),
            hit_rate=tally.cached_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0,
            held_rate=tally.held_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0,
            shared_rate=tally.shared_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0,
            prefill_use=sum(busy[:split]) / (now * split),
            decode_use=sum(busy[split:]) / (now * (len(busy) - split)),
            balance=balance(busy[:split]),
            simulated_s=now,
            wall_s=wall_s,
            refused=dict(tally.refused),
            tokens_of=dict(tally.tokens_of),
            most_waiting=tally.most_waiting,
        )
