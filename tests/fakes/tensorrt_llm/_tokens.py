"""What the fake answers: each token follows from seed and text before it, so that anyone can check an answer.

A request that goes on elsewhere, its answer so far being part of the prompt, so gets the same tokens, as from a model.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

LOGPROB = -0.5
"""Of every token chosen."""


def read(token_ids: list[int], state: bytes = b"") -> bytes:
    """The state after reading these tokens: it stands for their KV."""
    for token_id in token_ids:
        state = blake2b(state + struct.pack("<I", token_id), digest_size=16).digest()
    return state


def next_token(state: bytes, seed: int, vocab_size: int, flavour: str = "") -> int:
    """The token that follows; ``flavour`` names adapter and guide, which change what a model says."""
    place = struct.pack("<Q", seed & (1 << 64) - 1) + flavour.encode()
    return int.from_bytes(blake2b(place, key=state, digest_size=8).digest(), "little") % vocab_size


def make_flavour(lora_id: int | None = None, guide: object = None) -> str:
    """Of a request with the adapter of that number, and with that JSON schema, regex, grammar or tag."""
    return f"lora {lora_id} guide {guide!r}" if lora_id is not None or guide is not None else ""


def expected_answer(prompt: list[int], count: int, vocab_size: int, seed: int = 0, flavour: str = "") -> list[int]:
    """The first ``count`` tokens that every fake engine answers; ``seed`` counts only where a temperature is set."""
    state, answer = read(prompt), []
    for _ in range(count):
        answer.append(next_token(state, seed, vocab_size, flavour))
        state = read(answer[-1:], state)
    return answer
