"""Draws the last replay: ``python loadtest/plot_replay.py`` reads what ``loadtest/replay.py`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import msgspec
import typer
from live.replay_report import REFERENCE_MS, ReplayReport
from matplotlib.figure import Figure
from plot_simulation import COLOURS
from simulate import ROOT
from style import RED, STYLE


def draw(axes: Any, report: ReplayReport, figure: str, title: str) -> None:
    """A bar for each policy, its median; a line from the lowest to the highest round."""
    for place, policy in enumerate(report.policies):
        values, median = policy.values[figure], policy.median(figure)
        axes.bar(place, median, 0.7, color=COLOURS[policy.name])
        axes.errorbar(place, median, [[median - min(values)], [max(values) - median]], color="black", lw=1)
        axes.annotate(f"{median:.3g}", (place, median), ha="center", va="bottom", fontsize=7.5)
    axes.set_xticks(range(len(report.policies)), [p.name.replace("_", "\n") for p in report.policies])
    axes.set_title(title)


def draw_reference(axes: Any, report: ReplayReport, index: int) -> None:
    """What the named reference reached, over the policies that it has too."""
    for place, policy in enumerate(report.policies):
        if policy.name in REFERENCE_MS:
            axes.hlines(REFERENCE_MS[policy.name][index], place - 0.4, place + 0.4, RED, "dashed", lw=1.2)
    axes.plot([], [], "--", color=RED, lw=1.2, label="Dynamo 1.6.1")
    axes.legend()


def main(
    report: Annotated[Path, typer.Option(help="What replay.py wrote.")] = ROOT / ".tandem" / "replay.json",
    out: Annotated[Path, typer.Option(help="The picture.")] = ROOT / ".tandem" / "replay.svg",
) -> None:
    """Draw the picture."""
    if not report.is_file():
        raise SystemExit(f"{report} is missing; make it with: make replay")
    found = msgspec.json.decode(report.read_bytes(), type=ReplayReport)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 3.3), layout="constrained", facecolor="white")
        mean, tail, between, hits = figure.subplots(1, 4)
        draw(mean, found, "TTFT mean", "TTFT mean, ms")
        draw_reference(mean, found, 0)
        draw(tail, found, "TTFT p99", "TTFT p99, ms")
        draw_reference(tail, found, 1)
        draw(between, found, "inter-token p99", "Inter-token p99, ms")
        draw(hits, found, "hit rate", "Prompt tokens found in a cache")
        figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
