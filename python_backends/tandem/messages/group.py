"""Leader ↔ followers of an engine group, over MPI."""

from __future__ import annotations

from tandem.errors import ErrorCode
from tandem.messages.base import Message
from tandem.messages.handle import KvHandle
from tandem.messages.worker import WorkerInfo


class Row(Message, frozen=True, kw_only=True):
    """One sequence in one step."""

    num_cached: int
    """Tokens before ``token_ids`` whose KV the blocks hold."""
    token_ids: list[int]
    """Tokens to read now."""
    block_ids: list[int]


class StepPlan(Message, frozen=True, kw_only=True):
    """One pass through the model, as all ranks of a group do it."""

    is_prefill: bool
    rows: list[Row]
    whole_logits: list[int]
    """Indexes of rows whose logits the leader wants whole; of the others it wants the likeliest token alone."""


class PullOrder(Message, frozen=True, kw_only=True):
    """Read your part of the handle's blocks into ``block_ids`` of your own."""

    request_id: str
    handle: KvHandle
    block_ids: list[int]


class Orders(Message, frozen=True, kw_only=True):
    """What the leader has for its followers, in this order. Sent at least twice a second, as a sign of life."""

    unpair: list[str] = []
    """Worker ids of peers that are gone for good."""
    pair: list[WorkerInfo] = []
    pull: list[PullOrder] = []
    abort: list[str] = []
    """Requests whose reading is no longer wanted."""
    leases_held: bool = False
    """Whether peers may be reading from this group now: over a network both sides move the bytes."""
    step: StepPlan | None = None
    stop: bool = False


class ReadEnded(Message, frozen=True, kw_only=True):
    """A follower's part of a pull has ended."""

    request_id: str
    rank: int
    bytes_moved: int
    code: ErrorCode | None = None
    """None: all of its part is there."""
    message: str = ""
    still_writing: bool = False
    """The read was given up, but may yet write: the blocks are not to be used until a second message says otherwise."""
