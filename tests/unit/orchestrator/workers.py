"""A prefill and a decode worker that do what the test says, behind the interfaces of fleet and lane."""

from __future__ import annotations

from tandem.errors import TandemError
from tandem.lanes.client import Mailbox
from tandem.messages import AnyWork, EngineEvent, StageName
from tandem.orchestrator.fleet import Assignment
from tests.unit.routing.sites import info, make_router, stored


class Named:
    """As a deployment's worker."""

    def __init__(self, name: str) -> None:
        self.name = name


class Lane:
    """As ``LaneClient``: keeps what was asked of the worker."""

    def __init__(self, stage: StageName) -> None:
        self.worker = Named(f"{stage}_0")
        self.info = info(self.worker.name, stage)
        self.mailbox = Mailbox()
        self.work: list[AnyWork] = []
        self.cancelled: list[str] = []
        self.open: set[str] = set()
        self.refusal: TandemError | None = None

    async def submit(self, work: AnyWork) -> Mailbox:
        if self.refusal:
            raise self.refusal
        self.work.append(work)
        self.open.add(work.request_id)
        return self.mailbox

    def say(self, *events: EngineEvent) -> None:
        """The worker reports this."""
        for event in events:
            self.mailbox.put(event)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def close(self, request_id: str) -> None:
        self.open.discard(request_id)


class Workers:
    """As ``Fleet``, with a real router. ``whole``: decode has cached the prompt, and gets all of the request."""

    def __init__(self) -> None:
        self.router = make_router(1)
        self.whole = False
        self.prefill = Lane("prefill")
        self.decode = Lane("decode")
        self.error: TandemError | None = None

    async def max_model_len(self) -> int:
        if self.error:
            raise self.error
        return 64

    async def route(self, token_ids: list[int], max_tokens: int) -> Assignment:
        if self.whole:
            stored(self.router, "decode_0", [1])
        plan = self.router.plan([1] if self.whole else [], len(token_ids), max_tokens, 0.0)
        self.assigned = self.router.commit(plan, 0.0)
        prefill = self.prefill if plan.workers[0] else None
        return Assignment(prefill, self.decode, self.assigned, plan)  # type: ignore[arg-type]

    def idle(self) -> bool:
        """Whether the router counts nothing any more."""
        table = self.router._table
        return not table.in_hand.any() and not table.wait_s.any() and not table.used_share.any()
