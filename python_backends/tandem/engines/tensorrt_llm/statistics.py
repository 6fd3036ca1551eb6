"""What the library's statistics tell, one for each iteration of its executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def read_step(statistics: Mapping[str, Any]) -> tuple[float, int | None]:
    """How many seconds one iteration of the executor took, and how many prompt tokens it read; None: it read no prompt.
    Every field may be missing."""
    batch = statistics.get("inflightBatchingStats") or {}
    seconds = 1e-3 * (statistics.get("iterLatencyMS") or 0.0)
    return seconds, (batch.get("numCtxTokens") or 0) if batch.get("numContextRequests") else None


@dataclass
class Blocks:
    """The library's KV blocks, as its last statistics had them. They come with steps, so an idle engine's are old."""

    total: int = 0
    used: int | None = None

    def stepped(self, statistics: Mapping[str, Any]) -> None:
        """One iteration of the executor."""
        cache = statistics.get("kvCacheStats") or {}
        self.total = cache.get("maxNumBlocks") or self.total
        self.used = cache.get("usedNumBlocks", self.used)

    def held(self, reserved: int) -> int:
        """Blocks in use, where requests and handles have ``reserved`` so many: less where they share some, and never
        more than that, whatever old statistics say."""
        return min(reserved, self.total or reserved) if self.used is None else min(reserved, self.used)
