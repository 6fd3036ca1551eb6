"""Which of a request's two workers keeps its KV.

After the hand-over both have it. Kept once, it leaves room for another prompt's: where workers lend each other what
they have, one of them is enough. Each stage keeps as large a share of the prompts as it has of the memory that no
running request holds.
"""

from __future__ import annotations

import math
from random import Random

from tandem.messages import StageName
from tandem.routing.table import WorkerTable

REFRESH_S = 1.0
"""For so long the shares are taken to be the same."""


class Keeping:
    """Draws who keeps a prompt, by the shares of the stages."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"keeping {seed}")
        self._fresh_until = -math.inf
        self._decode_share = 0.0

    def draw(self, table: WorkerTable, now: float) -> StageName:
        """Who keeps a prompt that is placed ``now``."""
        if not self._fresh_until - REFRESH_S <= now < self._fresh_until:
            self._fresh_until = now + REFRESH_S
            prefill, decode = table.idle_blocks("prefill"), table.idle_blocks("decode")
            self._decode_share = decode / (prefill + decode) if decode else 0.0
        return "decode" if self._random.random() < self._decode_share else "prefill"
