"""Blocks to the host and back, beside the steps; what the second tier copies with (a ``BlockMemory``)."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.engines.torch.kv_cache import KvCache
from tandem.kv.tiers.memory import Bytes


class BlockCopier:
    """For one thread. On CUDA with a stream of its own and pinned memory, so that no step waits for a copy; a step's
    writes have ended when its blocks are named, since its tokens were chosen by then."""

    def __init__(self, cache: KvCache) -> None:
        self._cache, self.block_bytes = cache, cache.block_bytes
        self._on_cuda = cache.device.type == "cuda"
        self._stream = torch.cuda.Stream(cache.device) if self._on_cuda else None  # type: ignore[no-untyped-call]

    def allocate(self, num_bytes: int) -> Bytes:
        """As in ``BlockMemory``."""
        memory: Bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._on_cuda).numpy()
        return memory

    def copy_out(self, block: int, to: Bytes) -> None:
        """As in ``BlockMemory``."""
        self._copy(self._cache.block(block), torch.from_numpy(to))

    def copy_in(self, block: int, data: Bytes) -> None:
        """As in ``BlockMemory``."""
        self._copy(torch.from_numpy(data), self._cache.block(block))

    def _copy(self, source: Tensor, target: Tensor) -> None:
        if self._stream is None:
            target.copy_(source)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._stream.synchronize()
