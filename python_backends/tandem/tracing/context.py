"""Which trace a request belongs to, as it travels: W3C's ``traceparent``."""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """A span somewhere else, as ids in lower-case hexadecimal digits."""

    trace_id: str
    """32 digits."""
    span_id: str
    """16 digits."""
    sampled: bool
    """Whether its trace is recorded."""

    def __str__(self) -> str:
        """As ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


def parse_traceparent(text: str) -> TraceContext | None:
    """What a ``traceparent`` says. None where it is not one: W3C wants a new trace then, and no error."""
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or (text.startswith("00") and found[4]):
        return None
    return TraceContext(found[1], found[2], bool(int(found[3], 16) & 1))
