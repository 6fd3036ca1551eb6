"""What a simulated worker answers: tokens that depend on nothing but the request, so that anyone can check them."""

from __future__ import annotations

import struct
from hashlib import blake2b

from tandem.kv.handle import digest_tokens
from tandem.messages import TokenLogprob

LOGPROB = -0.5
"""Of every token chosen."""


def answer_token(seed: int, index: int, prompt_digest: bytes, vocab_size: int) -> int:
    """Token ``index`` of the answer to the prompt with this digest (``digest_tokens``): the same on every worker."""
    place = struct.pack("<QQ", seed & (1 << 64) - 1, index)
    return int.from_bytes(blake2b(place, key=prompt_digest, digest_size=8).digest(), "little") % vocab_size


def expected_answer(seed: int, prompt: list[int], count: int, vocab_size: int) -> list[int]:
    """The first ``count`` tokens that any simulated worker answers to ``prompt``."""
    digest = digest_tokens(prompt)
    return [answer_token(seed, index, digest, vocab_size) for index in range(count)]


def make_logprob(token_id: int, top: int, vocab_size: int) -> TokenLogprob:
    """Log-probabilities of the right form: the token is the likeliest, and ``top`` say so."""
    others = [((token_id + i) % vocab_size, LOGPROB - i) for i in range(top)]
    return TokenLogprob(logprob=LOGPROB, top=others)
