"""Whether reading blocks back is quicker than computing them: measured read time against measured prefill time.

Nothing is configured. As long as either is not known, blocks are read, which measures. A store that was too slow is
tried again now and then, with few blocks: it may have been busy.
"""

from __future__ import annotations

from collections.abc import Callable

MEMORY = 0.8
"""Weight of all earlier reads beside the last block."""
TRY_AGAIN_S = 10.0
TRY_BLOCKS = 4
LEAST_WAIT_S = 0.05
PATIENCE = 2.0
"""A read is given up after this many times what computing takes."""
UNMEASURED_WAIT_S = 1.0


class Worth:
    """Seconds of one clock; used from two threads, of which one only measures."""

    def __init__(self, block_size: int, seconds_per_token: Callable[[], float | None]) -> None:
        """``seconds_per_token``: what computing a prompt's token takes, None while that is not known."""
        self._block_size, self._seconds_per_token = block_size, seconds_per_token
        self._seconds = self._blocks = 0.0
        """Of reads, fading."""
        self._last = 0.0

    def measured(self, seconds: float, now: float) -> None:
        """Reading a block took so long, checksum and copy included."""
        self._seconds = MEMORY * self._seconds + seconds
        self._blocks = MEMORY * self._blocks + 1.0
        self._last = now

    def blocks_to_read(self, wanted: int, waiting: int, now: float) -> int:
        """How many of ``wanted`` blocks to read, where the reads of ``waiting`` others come first."""
        compute_s = self._compute_s(1)
        if compute_s is None or not self._blocks:
            return wanted
        if (waiting + wanted) * self._seconds / self._blocks < wanted * compute_s:
            return wanted
        return min(wanted, TRY_BLOCKS) if not waiting and now - self._last > TRY_AGAIN_S else 0

    def wait_s(self, blocks: int) -> float:
        """How long a read of ``blocks`` may take before they are computed all the same."""
        compute_s = self._compute_s(blocks)
        return UNMEASURED_WAIT_S if compute_s is None else max(LEAST_WAIT_S, PATIENCE * compute_s)

    def _compute_s(self, blocks: int) -> float | None:
        per_token = self._seconds_per_token()
        return None if per_token is None else blocks * self._block_size * per_token
