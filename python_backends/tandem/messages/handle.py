"""The KV handle."""

from __future__ import annotations

from typing import Any

from tandem.messages.base import Message
from tandem.messages.worker import KvFormat, Partition


class HeldBlocks(Message, tag="blocks", frozen=True, kw_only=True):
    """KV that lies in blocks of memory that the peer may read."""

    block_ids: list[int]


class HeldByLibrary(Message, tag="library", frozen=True, kw_only=True):
    """KV that the engine's library holds, and finds again by what it has said about it."""

    context_request_id: int
    opaque_state: bytes
    """Empty: it holds none, and decode has to read the prompt itself."""
    first_token_ids: list[int]
    draft_token_ids: list[int] | None = None
    more: dict[str, int | str] = {}
    """Fields that only newer versions of the library have."""
    first_logprobs: list[Any] | None = None
    """Of the first token, as the library nests them."""


class KvHandle(Message, frozen=True, kw_only=True):
    """The ticket that prefill returns and decode redeems. Signed: see ``tandem.kv.handle``."""

    version: int
    worker_id: str
    epoch: int
    lease_id: int
    kv: KvFormat
    partition: Partition
    num_tokens: int
    """Tokens whose KV the blocks hold (the prompt's)."""
    tokens_digest: bytes
    """Hash of those token ids: a handle fits one prompt only."""
    held: HeldBlocks | HeldByLibrary

    @property
    def block_ids(self) -> list[int]:
        """Of ``HeldBlocks``; a library's are its own."""
        return self.held.block_ids if isinstance(self.held, HeldBlocks) else []
