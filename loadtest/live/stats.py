"""Figures of a run from the records of its requests. No clock, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from live.record import LEFT, Record


class Times(msgspec.Struct, frozen=True):
    """Of many times, in seconds; all 0 where there were none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    most: float


class Slo(msgspec.Struct, frozen=True):
    """What a request has to keep to count for goodput."""

    ttft_s: float
    inter_token_p99_s: float
    """99 of 100 gaps of the request's own."""

    @property
    def words(self) -> str:
        """As a reader would say it."""
        return f"TTFT ≤ {1e3 * self.ttft_s:g} ms and inter-token p99 ≤ {1e3 * self.inter_token_p99_s:g} ms"


class RoundFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests of one round."""

    seconds: float
    requests: int
    finished: int
    left: int
    errors: dict[str, int]
    """By code."""
    requests_per_s: float
    """Finished ones."""
    tokens_per_s: float
    """All that came, those of clients that left among them."""
    goodput_per_s: float
    """Finished requests that kept the SLO."""
    good_share: float
    """Of those that were asked and not left."""
    ttft: Times
    inter_token: Times
    hit_rate: float
    """Prompt tokens that were not read, of all of finished requests."""


def summarise(values: Iterable[float]) -> Times:
    """Mean and percentiles (linear between neighbours)."""
    found = np.fromiter(values, np.float64)
    if not found.size:
        return Times(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = (float(x) for x in np.percentile(found, (50, 90, 99)))
    return Times(found.size, float(found.mean()), p50, p90, p99, float(found.max()))


def keeps(record: Record, slo: Slo) -> bool:
    """Whether a request was served as the SLO wants it: a whole answer, in time."""
    if record.error or record.finish in ("", LEFT, "cancelled") or record.ttft is None or record.ttft > slo.ttft_s:
        return False
    return not record.gaps or float(np.percentile(record.gaps, 99)) <= slo.inter_token_p99_s


def figures(records: Sequence[Record], slo: Slo, seconds: float) -> RoundFigures:
    """Of one round that lasted so long."""
    finished = [r for r in records if not r.error and r.finish != LEFT]
    left = sum(r.finish == LEFT for r in records)
    good = sum(keeps(r, slo) for r in records)
    prompt = sum(r.prompt_tokens for r in finished)
    return RoundFigures(
        seconds=seconds,
        requests=len(records),
        finished=len(finished),
        left=left,
        errors=dict(Counter(r.error_code for r in records if r.error)),
        requests_per_s=len(finished) / seconds,
        tokens_per_s=sum(r.tokens for r in records) / seconds,
        goodput_per_s=good / seconds,
        good_share=good / max(1, len(records) - left),
        ttft=summarise(r.ttft for r in records if r.ttft is not None),
        inter_token=summarise(gap for r in records for gap in r.gaps),
        hit_rate=sum(r.cached_tokens for r in finished) / prompt if prompt else 0.0,
    )
