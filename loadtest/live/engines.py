"""Simulated engines for load tests: those of the profiles, and one with the timing of a named reference."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tandem.engines.sim.profiles import find_profile
from tandem.engines.sim.timing import Timing

MOCKER = "mocker"
"""The engine that Dynamo 1.6.1's mocker is by default: see ``_mocker``."""

MOST_STEP_TOKENS = 8192
"""Prompt tokens of one step; longer prompts take several. The mocker's default too."""


@dataclass(frozen=True)
class SimEngine:
    """How fast workers are, ready at once. The stages may differ."""

    profile: str
    """That the timings replace."""
    prefill: Timing
    decode: Timing
    kv_bytes: int
    """KV memory of one worker."""
    context: int
    """Most tokens of prompt and answer together."""


def find_engine(name: str, speed: float = 1.0) -> SimEngine:
    """The engine called so, ``speed`` times as fast: ``mocker``, or a profile of ``tandem.engines.sim.profiles``.

    Raises:
        TandemError: ``invalid_request``, with the names of the profiles.
    """
    if name == MOCKER:
        return _mocker(speed)
    found = find_profile(name)
    timing = sped_up(found.timing, speed)
    return SimEngine(name, timing, timing, found.kv_bytes, found.context)


def sped_up(timing: Timing, speed: float) -> Timing:
    """A timing ``speed`` times as fast."""
    times = ("overhead_s", "weights_s", "token_s", "pair_s", "context_s", "transfer_latency_s")
    faster = {name: getattr(timing, name) / speed for name in times}
    link = timing.transfer_bytes_per_s * speed
    return msgspec.structs.replace(timing, **faster, transfer_bytes_per_s=link, start_s=0.0)


def _mocker(speed: float) -> SimEngine:
    """Its formulas, in milliseconds: a prefill step of n tokens takes 4.209989e-07 n² + 1.518344e-02 n + 16.50142, a
    decode step 5.74 + 54.01 u - 25.74 u², u being the share of the KV memory in use. What was read before a step costs
    nothing there. Our formulas have no squares: n² is made linear, exact for the full step of 8,192 tokens and for an
    empty one; u stays below 0.1, and its square is left out. The KV memory has 16,384 blocks of 64 tokens; transfers
    run at 64 GB/s."""
    tokens = 16_384 * 64
    shared = Timing(kv_bytes_per_token=131_072, transfer_bytes_per_s=64e9)
    token_s = 1.518344e-5 + 4.209989e-10 * MOST_STEP_TOKENS
    prefill = msgspec.structs.replace(shared, overhead_s=16.50142e-3, token_s=token_s)
    decode = msgspec.structs.replace(prefill, overhead_s=5.74e-3, context_s=54.01e-3 / tokens)
    kv_bytes = tokens * int(shared.kv_bytes_per_token)
    return SimEngine("instant", sped_up(prefill, speed), sped_up(decode, speed), kv_bytes, 131_072)
