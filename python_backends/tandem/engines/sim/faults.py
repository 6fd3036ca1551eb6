"""Failures on demand: whom they strike."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal


class Crash(Exception):
    """The worker dies, as its faults say."""


def is_struck(request_id: str, kind: Literal["step", "pull"], share: float) -> bool:
    """Whether a fault that falls on ``share`` of the requests falls on this one: the same whenever it is asked."""
    if share == 0.0:
        return False
    draw = int.from_bytes(blake2b(f"{kind} {request_id}".encode(), digest_size=8).digest(), "little")
    return draw < share * (1 << 64)
