"""What a simulated worker's KV blocks hold: a few real bytes each, which name the tokens whose KV they stand for.

Prefill writes them, NIXL moves them, decode compares: so a pull that brings the wrong blocks, or blocks that somebody
else was given meanwhile, does not go unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tandem.kv.handle import digest_tokens
from tandem.kv.memory import HostMemory, Words
from tandem.kv.prefix_cache import Chain
from tandem.messages import SharedMemory

NAME_BYTES = 8


class BlockContents:
    """The memory of all blocks; of each, the first 8 bytes are used."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        """``block_bytes`` is 8 or more."""
        self._host = HostMemory(num_blocks * block_bytes)
        self._memory = self._host.array.reshape(num_blocks, block_bytes)

    @property
    def address(self) -> int:
        """Where block 0 starts."""
        return int(self._memory.ctypes.data)

    @property
    def shared(self) -> SharedMemory:
        """How other processes of this host find it."""
        return self._host.place

    @property
    def lease_words(self) -> Words:
        """Where they find which leases hold."""
        return self._host.lease_words

    def write(self, block_ids: Sequence[int], names: Sequence[int]) -> None:
        """Name the tokens that blocks hold."""
        self._memory[list(block_ids), :NAME_BYTES] = _bytes_of(names)

    def hold(self, block_ids: Sequence[int], names: Sequence[int]) -> bool:
        """Whether blocks hold these tokens."""
        return bool((self._memory[list(block_ids), :NAME_BYTES] == _bytes_of(names)).all())


def name_contents(chain: Chain, token_ids: list[int], block_size: int) -> list[int]:
    """A name for each block of ``token_ids``, which are those of ``chain``: the last has one even if it is not full."""
    names = [chain[i][0] for i in range(len(token_ids) // block_size)]
    if len(token_ids) % block_size:
        names.append(int.from_bytes(digest_tokens(token_ids)[:NAME_BYTES], "little"))
    return names


def _bytes_of(names: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.array(names, "<u8").view(np.uint8).reshape(-1, NAME_BYTES)
