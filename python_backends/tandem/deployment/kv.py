"""``[kv]``: KV cache blocks and their hand-over."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tandem.deployment.base import PositiveFloat, Section


class Kv(Section, frozen=True, kw_only=True):
    """KV cache blocks and their hand-over."""

    block_size: Annotated[int, Meta(ge=1, le=256)] = 16
    """Tokens per block."""
    prefix_cache: bool = True
    """Whether finished blocks are kept for requests that begin with the same tokens."""
    lease_s: PositiveFloat = 30.0
    transfer_timeout_s: PositiveFloat = 10.0
