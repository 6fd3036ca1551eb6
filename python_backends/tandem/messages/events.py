"""Engine → orchestrator: what became of the work."""

from __future__ import annotations

from tandem.errors import ErrorCode
from tandem.messages.base import FinishReason, Message


class TokenLogprob(Message, frozen=True, kw_only=True):
    """Natural-log probabilities before sampling filters, after penalties."""

    logprob: float
    top: list[tuple[int, float]] = []


class Tokens(Message, tag="tokens", frozen=True, kw_only=True):
    """New tokens of one answer. ``index`` is the first one's place in it, so repeats can be dropped."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Prefilled(Message, tag="prefilled", frozen=True, kw_only=True):
    """A ``Prefill`` is done: its one token follows in ``Tokens`` before this event.

    ``handle`` is None where the first token already ended the answer (``finish_reason`` set).
    """

    request_id: str
    handle: bytes | None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Tokens that did not have to be read: their KV was in the prefix cache."""
    queue_s: float = 0.0
    compute_s: float = 0.0


class Pulled(Message, tag="pulled", frozen=True, kw_only=True):
    """Decode holds confirmed KV: how much moved and how long it took, confirmation included."""

    request_id: str
    bytes_moved: int
    seconds: float


class Preempted(Message, tag="preempted", frozen=True, kw_only=True):
    """Its KV has given way to that of others; once there is room it is computed anew, and the answer goes on."""

    request_id: str


class Finished(Message, tag="finished", frozen=True, kw_only=True):
    request_id: str
    reason: FinishReason
    cached_tokens: int = 0
    """Of a ``Generate``: tokens that did not have to be read."""
    queue_s: float = 0.0
    """Of a ``Generate``: as in ``Prefilled``."""
    compute_s: float = 0.0


class Failed(Message, tag="failed", frozen=True, kw_only=True):
    request_id: str
    code: ErrorCode
    message: str


EngineEvent = Tokens | Prefilled | Pulled | Preempted | Finished | Failed
