"""The paged KV cache: one allocation, block after block, so that a block moves between workers as one piece of memory.

Layout: [num_blocks, layers, 2 (keys, values), kv_heads, block_size, head_dim]. Two views of the same memory matter:

* a *slot* holds one token's key or value of one head in one layer: head_dim elements;
* a *piece* holds a whole block's keys or values of one head in one layer: block_size slots, contiguous.

Indexes name slots and pieces of layer 0. Each layer has a view that starts later by a constant, so the same index
serves all layers and is computed once per step.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.errors import TandemError

LAYOUT = "block-major-v1"
"""Names this layout, and the order of rotary pairs in a key, to other workers."""


class KvCache:
    """Keys and values of all tokens in hand. Who owns which block is the block pool's affair."""

    def __init__(
        self, config: ModelConfig, block_size: int, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates everything; memory starts as zeros, since masked slots still enter products as 0 · value."""
        self.block_size, self.num_blocks, self.device = block_size, num_blocks, device
        self._layers, self._heads, self._head_dim = config.num_layers, config.num_kv_heads, config.head_dim
        self.block_bytes = block_size * config.kv_bytes_per_token(dtype.itemsize)
        self._memory = _allocate(num_blocks * self.block_bytes, device).view(dtype)
        slots = self._memory.view(-1, self._head_dim)
        pieces = self._memory.view(-1, block_size * self._head_dim)
        heads = 2 * self._heads
        self._slots_of = [slots[layer * heads * block_size :] for layer in range(self._layers)]
        self._pieces_of = [pieces[layer * heads :] for layer in range(self._layers)]
        self._piece_of = torch.arange(heads, device=device).view(2, self._heads)
        """Of a block's pieces in one layer: which holds keys (0) or values (1) of which head."""

    @property
    def address(self) -> int:
        """Where block 0 starts."""
        return self._memory.data_ptr()

    def slot_index(self, block_ids: Tensor, offsets: Tensor) -> Tensor:
        """For ``write``: slots of the tokens at ``offsets`` in ``block_ids``, int64 [tokens] each.

        Returns int64 [tokens, kv_heads, 2].
        """
        pieces = block_ids.view(-1, 1, 1) * (self._layers * 2 * self._heads) + self._piece_of.T
        return pieces * self.block_size + offsets.view(-1, 1, 1)

    def piece_index(self, tables: Tensor) -> Tensor:
        """For ``read``: pieces of block tables, int64 [sequences, blocks].

        Returns int64 [2 * sequences * kv_heads * blocks].
        """
        blocks = tables[None, :, None, :] * (self._layers * 2 * self._heads)
        return (blocks + self._piece_of.view(2, 1, -1, 1)).flatten()

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store ``keys_values`` [tokens, kv_heads, 2, head_dim] into ``slot_index`` slots."""
        self._slots_of[layer].index_put_((slots,), keys_values)

    def read(self, layer: int, pieces: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values of ``piece_index`` pieces, each [sequences * kv_heads, blocks * block_size, head_dim]."""
        gathered = self._pieces_of[layer].index_select(0, pieces)
        keys, values = gathered.view(2, sequences * self._heads, -1, self._head_dim).unbind()
        return keys, values


def blocks_that_fit(kv_bytes: int, block_bytes: int) -> int:
    """Number of blocks in ``kv_bytes``.

    Raises:
        TandemError: ``invalid_request``: not even one.
    """
    if kv_bytes < block_bytes:
        raise TandemError(
            "invalid_request", f"worker.kv_memory: {kv_bytes} bytes hold no KV block; one takes {block_bytes} bytes"
        )
    return kv_bytes // block_bytes


def _allocate(num_bytes: int, device: torch.device) -> Tensor:
    """Zeroed bytes; on CPU page-aligned, so that they can be registered for transfers."""
    if device.type != "cpu":
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
