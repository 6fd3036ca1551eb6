"""How long things take on a simulated worker: one formula for every step, one for every transfer.

    step      overhead + max(weights, new tokens × token) + prefill pairs × pair + decode context × context
    transfer  latency + tokens × kv_bytes_per_token / transfer_bytes_per_s

A step reads all weights once and multiplies them with every new token, whichever takes longer. On top come attention
in prefill, which multiplies (each new token with all tokens up to itself: a *pair*), and attention in decode, which
reads the KV of all tokens before the new one. So a long prompt costs more than its length, a large batch shares the
reading of weights, and a prompt whose beginning is cached costs what is left of it.
"""

from __future__ import annotations

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile says, and a deployment may replace field by field. Seconds, unless the name says otherwise."""

    overhead_s: float = 0.0
    """Of each step: launches, scheduling, sampling, the ranks' exchange."""
    weights_s: float = 0.0
    """To read all weights once."""
    token_s: float = 0.0
    """To multiply all weights with one token."""
    pair_s: float = 0.0
    """Prefill attention of one token to one token."""
    context_s: float = 0.0
    """Decode attention: to read the KV of one token."""
    kv_bytes_per_token: float = 1024.0
    transfer_latency_s: float = 0.0
    transfer_bytes_per_s: float = float("inf")
    start_s: float = 0.0
    """From the start of the process until the worker is ready."""


def prefill_pairs(num_cached: int, num_new: int) -> int:
    """Pairs of causal attention of ``num_new`` tokens after ``num_cached``."""
    return num_new * num_cached + num_new * (num_new + 1) // 2


def step_s(timing: Timing, new_tokens: int, pairs: int, context_tokens: int) -> float:
    """Seconds of one step; ``new_tokens`` counts every row's, ``context_tokens`` those before each decode row's."""
    matrices = max(timing.weights_s, new_tokens * timing.token_s)
    return timing.overhead_s + matrices + pairs * timing.pair_s + context_tokens * timing.context_s


def transfer_s(timing: Timing, tokens: int) -> float:
    """Seconds until the KV of ``tokens`` has moved from one worker to another."""
    return timing.transfer_latency_s + tokens * timing.kv_bytes_per_token / timing.transfer_bytes_per_s
