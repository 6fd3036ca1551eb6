"""A prefill and a decode worker that do what the test says, behind the interfaces of fleet and lane."""

from __future__ import annotations

from tandem.errors import TandemError
from tandem.lanes.client import Mailbox
from tandem.messages import AnyWork, EngineEvent, KvFormat, StageName, WorkerInfo


class Named:
    """As a deployment's worker."""

    def __init__(self, name: str) -> None:
        self.name = name


class Lane:
    """As ``LaneClient``: keeps what was asked of the worker."""

    def __init__(self, stage: StageName) -> None:
        self.worker = Named(f"{stage}_0")
        self.info = WorkerInfo(
            worker_id=self.worker.name,
            epoch=1,
            stage=stage,
            engine="torch",
            kv=KvFormat(fingerprint="f", dtype="d", layout="l", block_size=16),
            vocab_size=500,
            max_model_len=64,
            max_batch_size=1,
            transfer=None,
        )
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
    """As ``Fleet``."""

    def __init__(self) -> None:
        self.prefill = Lane("prefill")
        self.decode = Lane("decode")
        self.error: TandemError | None = None

    async def route(self) -> tuple[Lane, Lane]:
        if self.error:
            raise self.error
        return self.prefill, self.decode
