"""The table of all metrics in docs/watching.md: ``python build/watch/metrics_table.py`` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric

from tandem.messages import Events, Load, TierLoad
from tandem.orchestrator.metrics import OrchestratorMetrics, WorkerView
from tandem.stage.metrics import StageMetrics

FILE = Path(__file__).parents[2] / "docs" / "watching.md"
BEGIN, END = "<!-- metrics -->", "<!-- /metrics -->"


def families() -> Iterator[Metric]:
    """Every family of metrics: the gateway's, then a worker's."""
    gateway = OrchestratorMetrics()
    gateway.workers([WorkerView("worker", "both", "good", 0)])
    yield from gateway.registry.collect()
    stage = StageMetrics("both", "worker")
    stage.record(Events(events=[], load=Load(tier=TierLoad(block_bytes=0))))
    yield from stage.registry.collect()


def shown_as(family: Metric) -> str:
    """The name in queries; a histogram's without its endings."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def table() -> str:
    """The table in Markdown."""
    lines = ["| metric | kind | labels, beside `deployment` | what |", "| --- | --- | --- | --- |"]
    for family in families():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{shown_as(family)}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """A document with the table in its place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
    print(FILE)
