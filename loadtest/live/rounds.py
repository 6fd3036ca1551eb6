"""Figures that were measured several times, and whether those of two runs differ by more than noise.

Every report with rounds holds a list of ``Figure``; ``python loadtest/compare.py A.json B.json`` compares any two.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

CERTAIN = 0.05
"""A difference counts where chance alone would show one as clear less often than this."""

Verdict = Literal["better", "worse", "within the noise", "too few rounds"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, once for each round."""

    name: str
    unit: str
    more_is_better: bool
    values: list[float]
    reference: float | None = None
    """What a named system reached, where there is one."""

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the range from the lowest to the highest round."""
        return (max(self.values) - min(self.values)) / 2


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A figure in two runs."""

    before: Figure
    after: Figure
    change: float
    """Of the medians: 0.1 is ten per cent more; infinite where it was 0."""
    chance: float
    """How often rounds of equal runs would lie apart as far as these; 1 where they do not lie apart."""
    verdict: Verdict


class FigureFile(msgspec.Struct, frozen=True):
    """What of a report a comparison reads; the rest is skipped."""

    title: str
    figures: list[Figure]


def lie_apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether every round of one run is above every round of the other."""
    return max(a) < min(b) or max(b) < min(a)


def chance_of_lying_apart(a: int, b: int) -> float:
    """How often so many rounds of two equal runs lie apart by luck: two of all the orders that there are."""
    return 2 / math.comb(a + b, a)


def compare(before: Figure, after: Figure) -> Comparison:
    """One figure of two runs. A difference is beyond the noise where the rounds lie apart and are enough to say so."""
    least = chance_of_lying_apart(len(before.values), len(after.values))
    apart = lie_apart(before.values, after.values)
    old, new = before.median, after.median
    verdict: Verdict
    if least > CERTAIN:
        verdict = "too few rounds"
    elif not apart:
        verdict = "within the noise"
    else:
        verdict = "better" if (new > old) == before.more_is_better else "worse"
    change = (new - old) / abs(old) if old else (0.0 if new == old else math.copysign(math.inf, new - old))
    return Comparison(before=before, after=after, change=change, chance=least if apart else 1.0, verdict=verdict)


def compare_all(before: Sequence[Figure], after: Sequence[Figure]) -> list[Comparison]:
    """All figures that both runs have, in the order of the second."""
    known = {figure.name: figure for figure in before}
    return [compare(known[figure.name], figure) for figure in after if figure.name in known]
