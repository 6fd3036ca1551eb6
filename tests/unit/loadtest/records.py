"""Records for tests of figures."""

from __future__ import annotations

from typing import Any

from live.record import Record


def record(**fields: Any) -> Record:
    """A whole answer of three tokens after 100 ms, 10 ms apart, with what ``fields`` change."""
    plain: dict[str, Any] = {
        "kind": "chat", "due": 1.0, "sent": 1.0, "ended": 1.2, "ttft": 0.1, "gaps": [0.01, 0.01],
        "tokens": 3, "prompt_tokens": 10, "cached_tokens": 4, "finish": "length",
    }  # fmt: skip
    return Record(**{**plain, **fields})
