"""The paged KV cache: one allocation, block after block, so that a block moves between workers as one piece of memory.

Layout: [num_blocks, kv_heads, layers, 2 (keys, values), block_size, head_dim]. So what a block holds of some heads is
one run of bytes, of which ranks of an engine group take theirs. Two views of the same memory matter:

* a *slot* holds one token's key or value of one head in one layer: head_dim elements;
* a *piece* holds a whole block's keys or values of one head in one layer: block_size slots, contiguous.

Indexes name slots and pieces of layer 0. Each layer has a view that starts later by a constant, so the same index
serves all layers and is computed once per step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.errors import TandemError
from tandem.kv.memory import HostMemory, Words
from tandem.messages import SharedMemory

Integers = npt.NDArray[np.int64]

LAYOUT = "head-major-v2"
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
        self.slice_bytes = self.block_bytes // (self._heads * self._layers)
        """Of one head of one layer in a block, keys and values."""
        num_bytes = num_blocks * self.block_bytes
        self._host = HostMemory(num_bytes) if device.type == "cpu" else None
        if self._host is not None:
            whole = torch.frombuffer(self._host.buffer, dtype=torch.uint8, count=num_bytes)
        else:
            whole = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._memory = whole.view(dtype)
        slots = self._memory.view(-1, self._head_dim)
        pieces = self._memory.view(-1, block_size * self._head_dim)
        self._slots_of = [slots[layer * 2 * block_size :] for layer in range(self._layers)]
        self._pieces_of = [pieces[layer * 2 :] for layer in range(self._layers)]
        self._pieces_in_layer = np.arange(self._heads) * (2 * self._layers) + np.arange(2)[:, None]

    @property
    def address(self) -> int:
        """Where block 0 starts."""
        return self._memory.data_ptr()

    @property
    def shared(self) -> SharedMemory | None:
        """How other processes of this host find it; None: it is a device's."""
        return self._host.place if self._host else None

    @property
    def lease_words(self) -> Words | None:
        """Where they find which leases hold; None: it is a device's."""
        return self._host.lease_words if self._host else None

    def block(self, block_id: int) -> Tensor:
        """The bytes of one block: uint8 [block_bytes]."""
        return self._memory.view(torch.uint8).view(self.num_blocks, -1)[block_id]

    def slots(self, layer: int) -> Tensor:
        """All slots that ``slot_index`` can name: [slots, head_dim]."""
        return self._slots_of[layer]

    def pieces(self, layer: int) -> Tensor:
        """All pieces that ``piece_index`` can name: [pieces, block_size * head_dim]."""
        return self._pieces_of[layer]

    def piece_index(self, block_ids: Integers) -> Integers:
        """Pieces of blocks, keys first: [..., 2, kv_heads]."""
        return block_ids[..., None, None] * (self._layers * 2 * self._heads) + self._pieces_in_layer

    def slot_index(self, block_ids: Integers, offsets: Integers) -> Integers:
        """Slots of the tokens at ``offsets`` in ``block_ids`` [tokens], key first: [tokens, kv_heads, 2]."""
        return self.piece_index(block_ids).transpose(0, 2, 1) * self.block_size + offsets[:, None, None]

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store ``keys_values`` [tokens, kv_heads, 2, head_dim] into the slots of ``slot_index``."""
        self._slots_of[layer].index_put_((slots,), keys_values)

    def read(self, layer: int, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [sequences * kv_heads, blocks * block_size, head_dim].

        ``pieces``: int64 [2, sequences * kv_heads, blocks].
        """
        gathered = self._pieces_of[layer].index_select(0, pieces.view(-1))
        keys, values = gathered.view(2, pieces.shape[1], -1, self._head_dim).unbind()
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
