"""Statistics of each step, in the form of the real library's JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorrt_llm._blocks import Blocks


@dataclass(frozen=True)
class Step:
    """What one was. Requests whose KV is on its way are active, and not scheduled."""

    seconds: float
    active: int
    queued: int
    admitted: int
    completed: int
    reading: int
    read_tokens: int
    writing: int


class Statistics:
    """Counts steps."""

    def __init__(self, max_batch_size: int) -> None:
        self._iteration = 0
        self._max_batch_size = max_batch_size

    def of_step(self, blocks: Blocks, step: Step) -> dict[str, Any]:
        """One step's."""
        self._iteration += 1
        lookups = blocks.reused + blocks.missed
        return {
            "timestamp": time.strftime("%m-%d-%Y %H:%M:%S"),
            "iter": self._iteration,
            "iterLatencyMS": step.seconds * 1000,
            "newActiveRequestsQueueLatencyMS": 0.0,
            "numNewActiveRequests": step.admitted,
            "numActiveRequests": step.active,
            "numQueuedRequests": step.queued,
            "numCompletedRequests": step.completed,
            "maxNumActiveRequests": self._max_batch_size,
            "gpuMemUsage": 0,
            "cpuMemUsage": 0,
            "pinnedMemUsage": 0,
            "kvCacheStats": {
                "maxNumBlocks": blocks.count,
                "freeNumBlocks": blocks.count - blocks.used,
                "usedNumBlocks": blocks.used,
                "tokensPerBlock": blocks.size,
                "allocTotalBlocks": blocks.allocated,
                "allocNewBlocks": blocks.fresh,
                "reusedBlocks": blocks.reused,
                "missedBlocks": blocks.missed,
                "cacheHitRate": blocks.reused / lookups if lookups else 0.0,
            },
            "inflightBatchingStats": {
                "numScheduledRequests": step.writing + step.reading,
                "numContextRequests": step.reading,
                "numGenRequests": step.writing,
                "numPausedRequests": 0,
                "numCtxTokens": step.read_tokens,
                "microBatchId": 0,
                "avgNumDecodedTokensPerIter": 0.0,
            },
        }
