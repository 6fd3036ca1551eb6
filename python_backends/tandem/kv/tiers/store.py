"""A place for blocks below the fast memory."""

from __future__ import annotations

from typing import Protocol

from tandem.kv.tiers.memory import Bytes


class Store(Protocol):
    """Blocks by digest, the least recently used ones given up for new ones. One thread writes, another one reads;
    ``holds`` may be asked by any.

    A digest stands for all that decides a block's bytes (``Chain.digest``), so blocks of one digest are equal.
    """

    capacity: int
    """In blocks."""

    def holds(self, digest: bytes) -> bool:
        """Whether it has the block, as far as it knows; never waits."""
        ...

    def put(self, digest: bytes, data: Bytes) -> bool:
        """Take a block in; whether it is there now."""
        ...

    def get(self, digest: bytes, out: Bytes) -> bool:
        """Copy a block to ``out``; whether it was there, whole and unchanged. One that is not is forgotten."""
        ...

    def close(self) -> None:
        """Let go of everything that others might wait for."""
        ...
