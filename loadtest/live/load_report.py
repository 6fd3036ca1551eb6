"""The load report as data: rounds of requests under users' load, and what the server's processes took."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from live.record import LEFT, Record
from live.resources import Sample
from live.rounds import Figure
from live.stats import RoundFigures, Slo


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and how."""

    deployment: str
    """Name of the deployment, or address of the server."""
    protocol: str
    users: int
    """At once, of all kinds together."""
    kinds: list[str]
    """Classes of users; empty: all."""
    seconds: float
    """Of a round."""
    answer_tokens: int
    slo: Slo
    machine: str


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round."""

    figures: RoundFigures
    kinds: dict[str, RoundFigures]
    """The same, of each kind of user."""
    ttft: list[float]
    """Seconds, of all requests in the order of their ends."""
    resources: dict[str, list[Sample]]
    """By role; empty where the server is not ours to watch."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    title: str
    settings: Settings
    rounds: list[Round]
    figures: list[Figure]


def within(records: Sequence[Record], seconds: float) -> list[Record]:
    """Of a round's records those that count, their clock begun anew with the first request: what was sent before the
    users were told to stop. What locust cut off then is not known to have failed."""
    if not records:
        return []
    began = min(record.sent for record in records)
    return [
        msgspec.structs.replace(r, due=r.due - began, sent=r.sent - began, ended=r.ended - began)
        for r in records
        if r.sent - began <= seconds
    ]


def figures_of(rounds: Sequence[Round]) -> list[Figure]:
    """What a comparison looks at, a value for each round."""
    found = [r.figures for r in rounds]
    cpu = [sum(_mean([s.cores for s in samples]) for samples in r.resources.values()) for r in rounds]
    memory = [sum(max(s.resident_mib for s in samples) for samples in r.resources.values()) for r in rounds]
    rows: list[tuple[str, str, bool, list[float]]] = [
        ("requests/s", "1/s", True, [f.requests_per_s for f in found]),
        ("tokens/s", "1/s", True, [f.tokens_per_s for f in found]),
        ("goodput", "1/s", True, [f.goodput_per_s for f in found]),
        ("requests within the SLO", "%", True, [100 * f.good_share for f in found]),
        ("TTFT mean", "ms", False, [1e3 * f.ttft.mean for f in found]),
        ("TTFT p50", "ms", False, [1e3 * f.ttft.p50 for f in found]),
        ("TTFT p99", "ms", False, [1e3 * f.ttft.p99 for f in found]),
        ("inter-token mean", "ms", False, [1e3 * f.inter_token.mean for f in found]),
        ("inter-token p50", "ms", False, [1e3 * f.inter_token.p50 for f in found]),
        ("inter-token p99", "ms", False, [1e3 * f.inter_token.p99 for f in found]),
        ("prompt tokens found in a cache", "%", True, [100 * f.hit_rate for f in found]),
        ("errors", "%", False, [100 * sum(f.errors.values()) / max(1, f.requests) for f in found]),
        ("CPU", "cores", False, cpu),
        ("memory, at most", "MiB", False, memory),
    ]
    return [Figure(name=n, unit=u, more_is_better=more, values=values) for n, u, more, values in rows if any(values)]


def outcomes(round_: Round) -> dict[str, int]:
    """How many requests ended in which way."""
    f = round_.figures
    return {"whole answer": f.finished, LEFT: f.left, **f.errors}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
