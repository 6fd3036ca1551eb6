"""Worker ↔ worker, from one transfer thread to the other: KV of a prompt's beginning that one has and the other lacks.

What is lent is under a lease, and is read and confirmed as what a handle names.
"""

from __future__ import annotations

from tandem.messages.base import Message


class Borrow(Message, tag="borrow", frozen=True, kw_only=True):
    """Lend me the blocks of these names, as many of the first as you have. Asked once: who hears nothing computes."""

    correlation: int
    """Names this question among all of one sender."""
    salt: str
    """Of the names."""
    names: list[int]
    """Of a prompt's first blocks; see ``tandem.kv.hashes``."""
    beyond: int
    """So many of them I have: fewer or as many are of no use."""


class Lent(Message, tag="lent", frozen=True, kw_only=True):
    """The answer: the blocks are under a lease, which holds for as long as any other."""

    correlation: int
    lease_id: int
    """0: there is nothing to lend."""
    block_ids: list[int]
    """Of the first names, in their order."""
    digest: bytes
    """Of salt and tokens up to the last block's end: names alone prove nothing."""
