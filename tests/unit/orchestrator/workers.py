"""Prefill and decode workers that do what the test says, behind the interfaces of fleet and lane."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from tandem.errors import TandemError
from tandem.kv.hashes import pack_hashes
from tandem.lanes.client import Mailbox
from tandem.messages import AnyWork, EngineEvent, Failed, StageName
from tandem.orchestrator.fleet import Assignment
from tandem.orchestrator.query import Query
from tandem.routing.disaggregation import NOBODY_WAITS, Waiting
from tandem.routing.router import Plan
from tests.unit.routing.sites import info, make_router, stored

STAGES: tuple[StageName, StageName] = ("prefill", "decode")


class Named:
    """As a deployment's worker."""

    def __init__(self, name: str) -> None:
        self.name = name


class Lane:
    """As ``LaneClient``: keeps what was asked of the worker."""

    def __init__(self, stage: StageName, number: int = 0) -> None:
        self.worker = Named(f"{stage}_{number}")
        self.info = info(self.worker.name, stage)
        self.mailboxes: dict[str, Mailbox] = {}
        self.work: list[AnyWork] = []
        self.cancelled: list[str] = []
        self.refusal: TandemError | None = None

    async def submit(self, work: AnyWork, mailbox: Mailbox) -> Mailbox:
        if self.refusal:
            raise self.refusal
        self.work.append(work)
        self.mailboxes[work.request_id] = mailbox
        return mailbox

    @property
    def open(self) -> set[str]:
        return set(self.mailboxes)

    @property
    def id(self) -> str:
        """Of the work that came last."""
        return self.work[-1].request_id

    def say(self, *events: EngineEvent) -> None:
        """The worker reports this of the work that came last."""
        for event in events:
            if mailbox := self.mailboxes.get(self.id):
                mailbox.put(msgspec.structs.replace(event, request_id=self.id))

    def lose(self) -> None:
        """The worker is gone."""
        for request_id, mailbox in self.mailboxes.items():
            mailbox.put(Failed(request_id=request_id, code="worker_lost", message=f"{self.worker.name} is gone"))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def close(self, request_id: str) -> None:
        self.mailboxes.pop(request_id, None)


class Workers:
    """As ``Fleet``, with a real router. ``whole``: decode has cached the prompt, and gets all of the request."""

    def __init__(self, each: int = 1, make_lane: Callable[[StageName, int], Lane] = Lane) -> None:
        self.router = make_router(each)
        self.whole = False
        self.lanes = {f"{stage}_{number}": make_lane(stage, number) for stage in STAGES for number in range(each)}
        self.prefill, self.decode = self.lanes["prefill_0"], self.lanes["decode_0"]
        self.error: TandemError | None = None

    def blocks_for(self, prompt_tokens: int, max_tokens: int) -> int:
        return self.router.blocks_for(prompt_tokens, max_tokens)

    def answered(self, max_tokens: int, tokens: int) -> None:
        self.router.answered(max_tokens, tokens)

    async def max_model_len(self) -> int:
        if self.error:
            raise self.error
        return 64

    async def route(
        self,
        query: Query,
        *,
        waiting: Waiting = NOBODY_WAITS,
        avoid: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Assignment:
        self.patience_s, self.waiting = patience_s, waiting
        return self.route_now(query, avoid) or self._assign(self._plan(query, ()))

    def query(self, token_ids: list[int], max_tokens: int, salt: str = "") -> Query:
        self.salt = salt
        return Query(token_ids, max_tokens, 16, salt)

    def foresee(self, query: Query, waiting: Waiting) -> Plan:
        return self._plan(query, (), waiting)

    def route_now(self, query: Query, avoid: Collection[str]) -> Assignment | None:
        try:
            return self._assign(self._plan(query, avoid))
        except TandemError:
            return None

    def _plan(self, query: Query, avoid: Collection[str], waiting: Waiting = NOBODY_WAITS) -> Plan:
        if self.whole:
            stored(self.router, "decode_0", [1])
        hashes = pack_hashes([1] if self.whole else [])
        return self.router.plan(hashes, query.num_tokens, query.max_tokens, 0.0, waiting=waiting, avoid=avoid)

    def _assign(self, plan: Plan) -> Assignment:
        prefill, decode = plan.workers
        route = self.router.commit(plan, 0.0)
        return Assignment(self.lanes[prefill] if prefill else None, self.lanes[decode], route, plan)  # type: ignore[arg-type]

    def idle(self) -> bool:
        """Whether nobody has anything, and the router counts nothing any more."""
        table = self.router._table
        counted = table.in_hand.any() or table.wait_s.any() or table.used_share.any()
        return not counted and not any(lane.open for lane in self.lanes.values())
