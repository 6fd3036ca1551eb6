"""Statistics of each step, in the form of the real library's JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorrt_llm._blocks import Blocks


class Statistics:
    """Counts steps."""

    def __init__(self, max_batch_size: int) -> None:
        self._iteration = 0
        self._max_batch_size = max_batch_size

    def of_step(
        self,
        blocks: Blocks,
        seconds: float,
        active: int,
        queued: int,
        completed: int,
        admitted: int,
        read: int,
        writing: int,
    ) -> dict[str, Any]:
        """One step's. Requests whose KV is on its way count as active, and are not scheduled."""
        self._iteration += 1
        lookups = blocks.reused + blocks.missed
        return {
            "timestamp": time.strftime("%m-%d-%Y %H:%M:%S"),
            "iter": self._iteration,
            "iterLatencyMS": seconds * 1000,
            "newActiveRequestsQueueLatencyMS": 0.0,
            "numNewActiveRequests": admitted,
            "numActiveRequests": active,
            "numQueuedRequests": queued,
            "numCompletedRequests": completed,
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
                "numScheduledRequests": writing + (1 if read else 0),
                "numContextRequests": 1 if read else 0,
                "numGenRequests": writing,
                "numPausedRequests": 0,
                "numCtxTokens": read,
                "microBatchId": 0,
                "avgNumDecodedTokensPerIter": 0.0,
            },
        }
