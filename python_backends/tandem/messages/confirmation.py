"""Who reads KV ↔ who holds it, from one transfer thread to the other: whether a lease held meanwhile."""

from __future__ import annotations

from tandem.errors import ErrorCode
from tandem.messages.base import Message
from tandem.messages.lending import Borrow, Lent


class Claim(Message, tag="claim", frozen=True, kw_only=True):
    """The read of a lease's blocks begins, by one who will see whether it holds: nobody else is to redeem it. Repeated
    until answered."""

    correlation: int
    """Names this pull among all of one sender; a repetition, and its confirmation, have the same."""
    lease_id: int
    holder: str
    """Agent name of the worker, and thereby the epoch, that granted the lease."""


class Claimed(Message, tag="claimed", frozen=True, kw_only=True):
    """The lease holds, and nobody else redeems it."""

    correlation: int


class Confirm(Message, tag="confirm", frozen=True, kw_only=True):
    """The read of a lease's blocks has ended: did the lease still hold? Repeated until answered, unless it is known."""

    correlation: int
    """Names this question among all of one sender; a repetition has the same."""
    lease_id: int
    holder: str
    """Agent name of the worker, and thereby the epoch, that granted the lease."""


class Confirmed(Message, tag="confirmed", frozen=True, kw_only=True):
    """The lease held during the whole read, and ended now."""

    correlation: int


class NotConfirmed(Message, tag="not_confirmed", frozen=True, kw_only=True):
    """The lease did not hold; what was read must not be used."""

    correlation: int
    code: ErrorCode
    message: str


TransferNote = Claim | Claimed | Confirm | Confirmed | NotConfirmed | Borrow | Lent
