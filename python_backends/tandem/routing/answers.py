"""How long answers become: KV blocks, steps and when memory comes free are reckoned with that."""

from __future__ import annotations

import math

REMEMBERED = 200
"""Answers after which one counts 1/e."""
DOUBT_TOKENS = 2000.0
"""As if an answer of so many tokens had come to all of them: until others have ended, each is taken to."""


class AnswerLengths:
    """Over the answers that ended of late."""

    def __init__(self) -> None:
        self._asked = self._written = DOUBT_TOKENS
        self._count = 1.0
        self.tokens = DOUBT_TOKENS
        """What an answer comes to."""
        self.share = 1.0
        """The same, of the most that it may."""

    def ended(self, max_tokens: int, tokens: int) -> None:
        """An answer of at most ``max_tokens`` has come to ``tokens``."""
        keep = math.exp(-1 / REMEMBERED)
        self._asked = keep * self._asked + max_tokens
        self._written = keep * self._written + tokens
        self._count = keep * self._count + 1
        self.tokens = self._written / self._count
        self.share = self._written / self._asked

    def expected(self, max_tokens: int) -> int:
        """Tokens that an answer is likely to come to, one at least."""
        return max(1, math.ceil(self.share * max_tokens - 1e-9))
