"""What became of replays: figures for each policy and round, and the table beside the reference."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.table import Table

from live.record import Record
from live.rounds import Figure
from live.stats import summarise

BASELINE = "round_robin"
REFERENCE = "Dynamo 1.6.1 with 4 mocked workers, its hit rate 0.18"
REFERENCE_MS = {"round_robin": (340.0, 1304.0), "kv": (293.0, 857.0)}
"""Of ``REFERENCE``, by policy: TTFT mean and p99, in the setting that ``make replay`` has by default."""
UNITS = {
    "TTFT mean": ("ms", False),
    "TTFT p50": ("ms", False),
    "TTFT p99": ("ms", False),
    "inter-token mean": ("ms", False),
    "inter-token p50": ("ms", False),
    "inter-token p99": ("ms", False),
    "hit rate": ("", True),
    "balance": ("", False),
    "failed": ("", False),
    "sent late, at most": ("ms", False),
}
"""What is told of each policy: unit, and whether more is better."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was replayed, and on what."""

    engine: str
    prefill_workers: int
    decode_workers: int
    whole: bool
    engine_speed: float
    speed: float
    requests: int
    most_tokens: int
    block_size: int
    load: float
    """Prefill work, as if nothing were cached, over what the prefill workers can do."""


class Policy(msgspec.Struct, kw_only=True):
    """One routing policy: a value for each round."""

    name: str
    values: dict[str, list[float]] = {}
    errors: dict[str, int] = {}
    """By code, of all rounds."""

    def median(self, figure: str) -> float:
        """The middle round."""
        return statistics.median(self.values[figure])


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """All policies of one run."""

    title: str
    settings: Settings
    policies: list[Policy]
    figures: list[Figure]
    reference: str = REFERENCE

    @classmethod
    def of(cls, settings: Settings, policies: list[Policy]) -> ReplayReport:
        """With the figures that a comparison reads."""
        found = [
            Figure(name=f"{policy.name}: {name}", unit=UNITS[name][0], more_is_better=UNITS[name][1], values=values)
            for policy in policies
            for name, values in policy.values.items()
        ]
        return cls(title="replay", settings=settings, policies=policies, figures=found)


def add_round(policy: Policy, records: Sequence[Record], balance: float, late_s: float) -> None:
    """One more round of a policy."""
    whole = [record for record in records if not record.error]
    ttft = summarise(record.ttft for record in whole if record.ttft is not None)
    gaps = summarise(gap for record in whole for gap in record.gaps)
    prompt = sum(record.prompt_tokens for record in whole)
    found = {
        "TTFT mean": 1e3 * ttft.mean,
        "TTFT p50": 1e3 * ttft.p50,
        "TTFT p99": 1e3 * ttft.p99,
        "inter-token mean": 1e3 * gaps.mean,
        "inter-token p50": 1e3 * gaps.p50,
        "inter-token p99": 1e3 * gaps.p99,
        "hit rate": sum(record.cached_tokens for record in whole) / prompt if prompt else 0.0,
        "balance": balance,
        "failed": float(len(records) - len(whole)),
        "sent late, at most": 1e3 * late_s,
    }
    for name, value in found.items():
        policy.values.setdefault(name, []).append(value)
    policy.errors = dict(Counter(policy.errors) + Counter(r.error_code for r in records if r.error))


def gain(policies: Sequence[Policy], name: str, figure: str) -> float | None:
    """How many times as much the baseline's figure is; None where the baseline did not run."""
    baseline = next((policy for policy in policies if policy.name == BASELINE), None)
    policy = next(policy for policy in policies if policy.name == name)
    if baseline is None or not policy.median(figure):
        return None
    return baseline.median(figure) / policy.median(figure)


def table(report: ReplayReport) -> Table:
    """For the terminal; medians of the rounds, gains over ``round_robin``."""
    s = report.settings
    shown = Table(
        title=f"replay: {s.requests} requests {s.speed:g} times as fast, answers of at most {s.most_tokens} tokens; "
        f"{s.prefill_workers} prefill and {s.decode_workers} decode worker(s), engine {s.engine} {s.engine_speed:g} "
        f"times as fast, load {s.load:.2f}",
        caption=f"reference: {report.reference}. Gains are over round_robin, of mean and p99 TTFT",
    )
    shown.add_column("policy")
    for heading in ("TTFT mean", "p50", "p99, ms", "gain mean", "p99", "inter-token mean", "p50", "p99, ms"):
        shown.add_column(heading, justify="right")
    for heading in ("hits", "balance", "failed", "late, ms", "reference mean", "p99, ms"):
        shown.add_column(heading, justify="right")
    for policy in report.policies:
        gains = (gain(report.policies, policy.name, figure) for figure in ("TTFT mean", "TTFT p99"))
        shown.add_row(
            policy.name,
            *(f"{policy.median(name):.0f}" for name in ("TTFT mean", "TTFT p50", "TTFT p99")),
            *("" if found is None else f"{found:.2f}" for found in gains),
            *(f"{policy.median(name):.1f}" for name in ("inter-token mean", "inter-token p50", "inter-token p99")),
            f"{policy.median('hit rate'):.3f}",
            f"{policy.median('balance'):.2f}",
            ", ".join(f"{count} {code}" for code, count in policy.errors.items()) or "0",
            f"{policy.median('sent late, at most'):.0f}",
            *(f"{value:.0f}" for value in REFERENCE_MS.get(policy.name, ())),
        )
    return shown
