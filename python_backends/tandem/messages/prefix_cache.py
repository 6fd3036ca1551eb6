"""What a worker's prefix cache holds."""

from __future__ import annotations

from typing import Annotated

import msgspec

from tandem.messages.base import Message

BlockHash = Annotated[int, msgspec.Meta(ge=0)]
"""64 bits; see ``tandem.kv.hashes``."""


class BlocksStored(Message, tag="stored", frozen=True, kw_only=True):
    """These blocks can be reused from now on. Chained hashes name them, in the chain's order."""

    hashes: list[BlockHash]


class BlocksRemoved(Message, tag="removed", frozen=True, kw_only=True):
    """These blocks are gone; those that follow them in a chain may still be there, but are of no use."""

    hashes: list[BlockHash]
    spare: bool = False
    """Another worker keeps them: that they went says nothing of how long this one keeps others."""


KvEvent = BlocksStored | BlocksRemoved


class KvReport(Message, frozen=True, kw_only=True):
    """Changes of a prefix cache since the one that the poll named; numbered, from 1 in each epoch."""

    first: int
    """Number of the first of ``events``."""
    events: list[KvEvent]
    is_snapshot: bool = False
    """The log does not reach back so far: forget all, ``events`` say everything there is, as if they had the number
    ``first`` together. It is 0 where nothing has happened in this epoch."""
