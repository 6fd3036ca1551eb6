"""Who may go to the workers, who waits, and who is refused. Runs alike in an orchestrator and on a simulated clock: it
is told the time, and does nothing by itself.

Workers get what they can take at once (``tandem.routing.room``); the rest waits here, where it can still be put in
order. A request that one worker can do whole, at less cost than the wait, passes those who wait for prefill workers.
Nothing waits longer than ``limits.max_queue_s``, and what would is refused when it comes: the queue is bounded by time.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import msgspec

from tandem.deployment import Limits
from tandem.errors import ErrorCode, TandemError
from tandem.orchestrator.fair_queue import FairQueue
from tandem.orchestrator.pace import Pace
from tandem.routing.disaggregation import NOBODY_WAITS, Waiting
from tandem.routing.room import Room

SURE_SHARE = 0.8
"""Of the longest wait: who is expected to wait longer is refused, since being refused after the wait is worse."""
SLACK_S = 1.0
"""A request that has more time to spare than that is not looked at more closely."""

Reason = Literal["queue", "deadline", "waited", "displaced"]
"""queue: it would have waited too long; deadline: no time would have been left for the prompt; waited: it has waited
too long; displaced: there were too many that wait."""


class Refusal(TandemError):
    """A request is turned away before any work."""

    def __init__(self, reason: Reason, code: ErrorCode, message: str, retry_after_s: float) -> None:
        super().__init__(code, f"{message}; try again in {retry_after_s:g} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may take."""

    priority: int
    tenant: str
    prompt_tokens: int
    max_tokens: int
    """Of the answer."""
    blocks: int
    """Of KV, for the prompt and what the answer is likely to take."""

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt_tokens + self.max_tokens


class Prospect(Protocol):
    """How a request would fare that went to workers now."""

    @property
    def first_token_s(self) -> float:
        """Expected until the first token is there."""
        ...

    @property
    def spares_prefill(self) -> bool:
        """Whether it takes nothing of prefill workers, since one that only decodes had better do all of it."""
        ...


class Ticket:
    """One request's place: first in the queue, then among those in flight."""

    def __init__(self, demand: Demand, number: int, entered: float, leave_by: float) -> None:
        self.demand = demand
        self.number = number
        self.entered = entered
        self.leave_by = leave_by
        """When it has waited too long."""
        self.passed = NOBODY_WAITS
        """Whom it did not wait for, since one worker is to do all of it; until it is booked."""
        self.state: Literal["waiting", "admitted", "booked", "left"] = "waiting"
        """booked: the router counts it among what the workers have in hand."""

    @property
    def priority(self) -> int:
        """1 is served first."""
        return self.demand.priority

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.demand.tenant

    @property
    def cost(self) -> int:
        """Tokens that it may take."""
        return self.demand.tokens


class _Held:
    """A sum over tickets."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.tokens = self.blocks = 0

    def add(self, ticket: Ticket, sign: int = 1) -> None:
        self.requests += sign
        self.prompt_tokens += sign * ticket.demand.prompt_tokens
        self.tokens += sign * ticket.cost
        self.blocks += sign * ticket.demand.blocks


class Admission:
    """The queue of one orchestrator, and the sums of what it let go."""

    def __init__(self, limits: Limits, find_room: Callable[[float], Room | None]) -> None:
        """``find_room`` says what the workers can take beyond what was booked there, given ``limits.kv_share``."""
        self._limits, self._ask_room = limits, find_room
        self.queue: FairQueue[Ticket] = FairQueue()
        self._leave_by: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self._in_flight, self._unbooked = _Held(), _Held()
        self._pace = Pace()

    @property
    def in_flight(self) -> int:
        """Requests that were let go to the workers and have not ended."""
        return self._in_flight.requests

    # -------------------------------------------------------------- a request's way

    def check(self, priority: int, tenant: str, now: float) -> None:
        """Whether a request of any length could still be taken in: asked before its prompt is read.

        Raises:
            Refusal: it could not.
        """
        self._check_wait(self._expected_wait_s(priority, tenant, 1, now))

    def enter(
        self,
        demand: Demand,
        now: float,
        time_left_s: float = math.inf,
        foresee: Callable[[Waiting], Prospect | None] = lambda _: None,
    ) -> tuple[Ticket, Ticket | None]:
        """Take a request in, which has so much time left; ``foresee`` says how it would fare if it went now, past those
        who wait; None if nobody knows. Returns its ticket, which is admitted, or waits until ``admit`` returns it; and
        the one that had to make room for it.

        Raises:
            Refusal: it would wait too long, or have no time left.
        """
        wait_s = self._expected_wait_s(demand.priority, demand.tenant, demand.tokens, now)
        waiting = Waiting(len(self.queue), wait_s)
        passed = waiting if wait_s and self._passes(demand, waiting, foresee) else NOBODY_WAITS
        wait_s -= passed.own_s
        self._check_wait(wait_s)
        self._check_deadline(demand, wait_s, time_left_s, partial(foresee, passed))
        ticket = Ticket(demand, next(self._numbers), now, now + self._limits.max_queue_s)
        if passed.own_s:
            ticket.passed = passed
            self.queue.charge(ticket)
            self._let_go(ticket)
            return ticket, None
        displaced = self._make_room(ticket) if len(self.queue) >= self._limits.max_waiting else None
        if not self.queue:
            self._pace.begin(now)
        self.queue.add(ticket)
        heapq.heappush(self._leave_by, (ticket.leave_by, ticket.number, ticket))
        return ticket, displaced

    def admit(self, now: float) -> list[Ticket]:
        """Those that may go now, in their order. Call it whenever something ended or was heard of."""
        admitted: list[Ticket] = []
        if not self.queue:
            return admitted
        room = self._find_room()
        while (head := self.queue.head()) is not None and self._fits(head, room):
            self.queue.pop()
            self._let_go(head)
            self._pace.served(head.cost, now)
            admitted.append(head)
        if not self.queue:
            self._pace.end()
        return admitted

    def expire(self, now: float) -> list[Ticket]:
        """Those that have waited too long; they are out."""
        expired = []
        while self._leave_by and (self._leave_by[0][0] <= now or self._leave_by[0][2].state != "waiting"):
            ticket = heapq.heappop(self._leave_by)[2]
            if ticket.state == "waiting":
                self.leave(ticket)
                expired.append(ticket)
        return expired

    def booked(self, ticket: Ticket) -> None:
        """From now on what the request takes of the workers is in what ``find_room`` says."""
        if ticket.state == "admitted":
            ticket.state, ticket.passed = "booked", NOBODY_WAITS
            self._unbooked.add(ticket, -1)

    def leave(self, ticket: Ticket) -> None:
        """A request has ended, however it did; may be called again."""
        if ticket.state == "waiting":
            self.queue.remove(ticket)
            if not self.queue:
                self._pace.end()
        elif ticket.state != "left":
            self.booked(ticket)
            self._in_flight.add(ticket, -1)
        ticket.state = "left"

    # -------------------------------------------------------------- what is let go

    def _find_room(self) -> Room | None:
        return self._ask_room(self._limits.kv_share)

    def _let_go(self, ticket: Ticket) -> None:
        ticket.state = "admitted"
        self._in_flight.add(ticket)
        self._unbooked.add(ticket)

    def _fits(self, ticket: Ticket, room: Room | None) -> bool:
        """Whether there is room. Alone a request always may go: who cannot do it says so."""
        if room is None or not self._in_flight.requests:
            return True  # without workers it waits where workers are chosen
        return room.prompt_tokens > self._unbooked.prompt_tokens and self._has_place(room, ticket.demand)

    def _has_place(self, room: Room, *demands: Demand) -> bool:
        """Whether there is room for the answers of all of these."""
        held, unbooked, limits = self._in_flight, self._unbooked, self._limits
        if limits.max_requests is not None:
            if held.requests + len(demands) > limits.max_requests:
                return False
        elif unbooked.requests + len(demands) > room.requests:
            return False
        tokens = held.tokens + sum(demand.tokens for demand in demands)
        if limits.max_tokens_in_flight is not None and tokens > limits.max_tokens_in_flight:
            return False
        return unbooked.blocks + sum(demand.blocks for demand in demands) <= room.blocks

    def _passes(self, demand: Demand, waiting: Waiting, foresee: Callable[[Waiting], Prospect | None]) -> bool:
        """Whether those who wait do so for prefill workers alone, and this one is better done by a decode worker, at
        once. Nobody passes one of a higher priority."""
        head, room = self.queue.head(), self._find_room()
        if head is None or room is None or head.priority < demand.priority:
            return False
        if not self._has_place(room, head.demand, demand):
            return False
        prospect = foresee(waiting)
        return prospect is not None and prospect.spares_prefill

    # -------------------------------------------------------------- what is refused

    def _expected_wait_s(self, priority: int, tenant: str, cost: int, now: float) -> float:
        """By how fast requests have gone of late, while some waited; if none has, by how fast prompts are read. A
        standstill is taken to last as long again, once: it says nothing about how long each of them takes."""
        before = self.queue.cost_before(priority, tenant, cost)
        if not before:
            return 0.0
        each_s = self._pace.seconds_per_token
        if each_s is not None:
            return before * each_s + self._pace.standstill_s(now)
        room = self._find_room()
        prompts = sum(ticket.demand.prompt_tokens for ticket in self.queue)
        share = prompts / sum(ticket.cost for ticket in self.queue)
        return 0.0 if room is None or room.read_s is None else before * room.read_s * share

    def _check_wait(self, wait_s: float) -> None:
        most = self._limits.max_queue_s
        if wait_s > SURE_SHARE * most:
            message = f"a wait of {wait_s:.1f} s is expected, too near to or above {most:g} s (limits.max_queue_s)"
            raise Refusal("queue", "overloaded", message, self.retry_after_s(wait_s))

    def _check_deadline(
        self, demand: Demand, wait_s: float, time_left_s: float, foresee: Callable[[], Prospect | None]
    ) -> None:
        room = self._find_room() if math.isfinite(time_left_s) else None
        if room is None or room.alone_s is None:
            return  # nobody has been measured
        if wait_s + 2 * room.alone_s * demand.prompt_tokens + SLACK_S <= time_left_s:
            return
        prospect = foresee() if wait_s <= time_left_s else None
        prompt_s = room.alone_s * demand.prompt_tokens if prospect is None else prospect.first_token_s
        if wait_s + prompt_s > time_left_s:
            message = (
                f"timeout_s: {time_left_s:.2f} s are left, but a wait of {wait_s:.2f} s and {prompt_s:.2f} s for the "
                f"prompt are expected"
            )
            raise Refusal("deadline", "deadline_exceeded", message, self.retry_after_s(wait_s))

    def _make_room(self, ticket: Ticket) -> Ticket:
        """Too many wait: out goes who has least claim to be here, if that is not the newcomer.

        Raises:
            Refusal: it is.
        """
        least = self.queue.least()
        assert least is not None
        more = self.queue.backlog(least.priority, least.tenant) > ticket.cost + self.queue.backlog(
            ticket.priority, ticket.tenant
        )
        if least.priority < ticket.priority or (least.priority == ticket.priority and not more):
            raise self.displaced()
        self.leave(least)
        return least

    def displaced(self) -> Refusal:
        """For a ticket that had to make room."""
        message = f"{self._limits.max_waiting} requests wait, as many as may (limits.max_waiting)"
        return Refusal("displaced", "overloaded", message, self.retry_after_s())

    def waited(self) -> Refusal:
        """For a ticket that has expired."""
        message = f"the wait has taken {self._limits.max_queue_s:g} s, the most allowed (limits.max_queue_s)"
        return Refusal("waited", "overloaded", message, self.retry_after_s())

    def retry_after_s(self, wait_s: float = 0.0) -> float:
        """When it is worth to try again, whole seconds where that is more than the configured time."""
        return max(self._limits.retry_after_s, float(math.ceil(wait_s - SURE_SHARE * self._limits.max_queue_s)))
