"""How a block's bytes get out of KV memory and into it; an engine provides it for its device."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class BlockMemory(Protocol):
    """KV memory as one thread copies it; each thread has its own. All calls wait for their copy."""

    block_bytes: int

    def allocate(self, num_bytes: int) -> Bytes:
        """Memory of the host that copies from and to the device are quick with (pinned for CUDA)."""
        ...

    def copy_out(self, block: int, to: Bytes) -> None:
        """Copy a block's bytes to ``to`` [block_bytes]."""
        ...

    def copy_in(self, block: int, data: Bytes) -> None:
        """Copy ``data`` [block_bytes] to a block."""
        ...
