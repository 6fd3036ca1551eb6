"""What became of a simulated day: times as distributions, cache hits, balance."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import msgspec

STEPS_PER_E = 100
"""Buckets of a distribution for each factor of e: percentiles are right to 1 %."""
SHORTEST_S = 1e-9
"""What is shorter counts as this."""


class Distribution:
    """Times, of which only the mean is exact: so many that they cannot all be kept."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._total = 0.0
        self._count = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Take one in, or ``count`` alike."""
        self._buckets[round(STEPS_PER_E * math.log(max(seconds, SHORTEST_S)))] += count
        self._total += seconds * count
        self._count += count

    def summary(self) -> Times:
        """Mean and percentiles."""
        if not self._count:
            return Times(0, 0.0, 0.0, 0.0)
        return Times(self._count, self._total / self._count, self._percentile(0.5), self._percentile(0.99))

    def _percentile(self, share: float) -> float:
        left = share * self._count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return math.exp(bucket / STEPS_PER_E)
        return 0.0


class Times(msgspec.Struct, frozen=True):
    """Seconds."""

    count: int
    mean: float
    p50: float
    p99: float


@dataclass
class Tally:
    """What is counted while a simulation runs."""

    ttft: Distribution = field(default_factory=Distribution)
    inter_token: Distribution = field(default_factory=Distribution)
    requests: int = 0
    finished: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By error code."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    held_tokens: int = 0
    """Of prompts, by any worker when they went to workers."""
    shared_tokens: int = 0
    """Of prompts, by one cache of the same size."""
    output_tokens: int = 0
    whole: int = 0
    """Requests that one worker did whole."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason; before any work."""
    tokens_of: Counter[str] = field(default_factory=Counter)
    """Prompt and answer tokens of finished requests, by tenant."""
    most_waiting: int = 0


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    policy: str
    prefill_workers: int
    decode_workers: int
    requests: int
    finished: int
    failed: dict[str, int]
    whole: int
    """Requests that one worker did whole, without a hand-over."""
    ttft: Times
    inter_token: Times
    hit_rate: float
    """Prompt tokens that did not have to be read, of all."""
    held_rate: float
    """Prompt tokens whose KV any worker had when the request went to workers, of all: the most that could be found."""
    shared_rate: float
    """Prompt tokens whose KV one least-recently-used cache would have had then, of all. It is as large as what workers
    hold for reuse at that moment, each block counted once, and what is free."""
    prefill_use: float
    """Of the prefill workers' time, the share in which they computed."""
    decode_use: float
    balance: float
    """Time in which the busiest prefill worker computed over their mean: 1 is even."""
    simulated_s: float
    wall_s: float
    refused: dict[str, int] = {}
    """Before any work, by reason."""
    tokens_of: dict[str, int] = {}
    """Prompt and answer tokens of finished requests, by tenant."""
    most_waiting: int = 0
    """At a time, before any work."""


def balance(busy_s: list[float]) -> float:
    """The busiest over the mean."""
    total = sum(busy_s)
    return max(busy_s) * len(busy_s) / total if total else 1.0
