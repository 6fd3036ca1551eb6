"""What the load tells, from the library's statistics and from what the engine sees itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Counters:
    """Named as in ``Load``."""

    steps: int = 0
    step_seconds: float = 0.0
    prefill_steps: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    pulls: int = 0
    bytes_pulled: int = 0
    pull_seconds: float = 0.0

    def stepped(self, statistics: Mapping[str, Any]) -> None:
        """One iteration of the executor. Every field may be missing."""
        seconds = 1e-3 * (statistics.get("iterLatencyMS") or 0.0)
        batch = statistics.get("inflightBatchingStats") or {}
        self.steps += 1
        self.step_seconds += seconds
        if batch.get("numContextRequests"):
            self.prefill_steps += 1
            self.prefill_tokens += batch.get("numCtxTokens") or 0
            self.prefill_seconds += seconds

    def pulled(self, bytes_moved: int, seconds: float) -> None:
        """KV has come."""
        self.pulls += 1
        self.bytes_pulled += bytes_moved
        self.pull_seconds += seconds


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
