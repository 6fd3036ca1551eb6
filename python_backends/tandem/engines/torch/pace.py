"""How much of a prompt a step may read while others write, so that none of their tokens comes too late.

Between two tokens of a running answer lie at most one prefill step and one decode step. A prefill step takes what any
step takes, which a decode step shows, and a time for each of its tokens, which is measured as the engine goes.
"""

from __future__ import annotations

FIRST_CHUNK = 32
"""Tokens, until a prefill step has been measured."""
LEAST_CHUNK = 16
"""Tokens: prompts get on even where the bound cannot be kept."""
AIM = 0.85
"""Of the bound: steps vary, and take longer the more of a prompt was read before."""
MEMORY = 0.7
"""Weight of all earlier steps beside the last one."""


class Pace:
    """The engine's measured speed, and the chunk that follows from it. Seconds of one clock."""

    def __init__(self, max_inter_token_s: float) -> None:
        self._bound_s = max_inter_token_s
        self._decode_s: float | None = None
        self._tokens = self._seconds = 0.0
        """Of prefill steps, fading; seconds beyond those of a decode step."""

    @property
    def chunk(self) -> int:
        """Most prompt tokens in one step beside running answers."""
        if self._tokens == 0:
            return FIRST_CHUNK
        room_s = AIM * self._bound_s - 2 * (self._decode_s or 0.0)
        if room_s * self._tokens <= LEAST_CHUNK * self._seconds:
            return LEAST_CHUNK
        # Far beyond what was measured the guess is worth little.
        most = 2 * max(self._tokens, FIRST_CHUNK)
        return int(min(most, room_s * self._tokens / self._seconds if self._seconds else most))

    @property
    def seconds_per_token(self) -> float | None:
        """Of reading a prompt, beyond what any step takes; None: no prefill step has been measured."""
        return self._seconds / self._tokens if self._tokens else None

    def decoded(self, seconds: float) -> None:
        """A decode step took so long."""
        earlier = seconds if self._decode_s is None else self._decode_s
        self._decode_s = MEMORY * earlier + (1 - MEMORY) * seconds

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill step of ``tokens`` took so long."""
        self._tokens = MEMORY * self._tokens + tokens
        self._seconds = MEMORY * self._seconds + max(0.0, seconds - (self._decode_s or 0.0))
