"""What a prefill worker could borrow of a prompt's KV from the worker that holds most of it."""

from __future__ import annotations

import msgspec

LEAST_GAIN_S = 0.02
"""What is gained by less is not worth a question, and the wait for its answer."""


class Offer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The worker that holds most of a prompt."""

    place: int
    tokens: int
    """That it holds, as far as it has said so."""
    share: float
    """Of the time that a token takes to be read, what its KV takes to come from elsewhere; below 1."""

    def gain(self, uncached: float, num_tokens: int) -> float:
        """Tokens that need not be read, so to speak, where ``uncached`` of the prompt are not held."""
        return (1.0 - self.share) * (uncached - (num_tokens - self.tokens))
