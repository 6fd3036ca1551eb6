"""Draws the last simulation: ``python loadtest/plot_simulation.py`` reads what ``loadtest/simulate.py`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import msgspec
import typer
from matplotlib.figure import Figure
from simulate import ROOT, Run
from style import BLUE, GREY, ORANGE, RED, STYLE

COLOURS = {"kv": BLUE, "least_loaded": ORANGE, "power_of_two": "#5aae61", "round_robin": GREY, "random": "#c2a5cf"}
GROUP = 0.84
"""Width of the bars of one scenario."""


def draw(axes: Any, runs: list[Run], title: str, height: Any) -> None:
    """One group of bars for each fleet and load, one bar for each policy."""
    scenarios = sorted({(run.workers, run.load) for run in runs})
    policies = [name for name in COLOURS if any(run.results.policy == name for run in runs)]
    width = GROUP / len(policies)
    for i, policy in enumerate(policies):
        found = {(r.workers, r.load): height(r) for r in runs if r.results.policy == policy}
        places = [n + (i + 0.5) * width - GROUP / 2 for n, s in enumerate(scenarios) if s in found]
        axes.bar(places, [found[s] for s in scenarios if s in found], width, color=COLOURS[policy], label=policy)
    axes.set_xticks(range(len(scenarios)), [f"{workers}\n{load:g}" for workers, load in scenarios])
    axes.set_title(title)


def draw_oracle(axes: Any, runs: list[Run]) -> None:
    """What one shared cache would have found, over each group: of all memory, and of the size of all caches."""
    kv = [run for run in runs if run.results.policy == "kv"]
    found = sorted((run.workers, run.load, run.oracle_hit_rate, run.results.shared_rate) for run in kv)
    for i, (style, label) in enumerate((("dotted", "one cache of all memory"), ("dashed", "of the size of kv's"))):
        for place, (_, _, *rates) in enumerate(found):
            ends = place - GROUP / 2, place + GROUP / 2
            axes.hlines(rates[i], *ends, RED, style, lw=1.2, label=None if place else label)


def main(
    report: Annotated[Path, typer.Option(help="What simulate.py wrote.")] = ROOT / ".tandem" / "simulation.json",
    out: Annotated[Path, typer.Option(help="The picture.")] = ROOT / "docs" / "pictures" / "simulation.svg",
) -> None:
    """Draw the picture."""
    if not report.is_file():
        raise SystemExit(f"{report} is missing; make it with: python loadtest/simulate.py")
    runs = msgspec.json.decode(report.read_bytes(), type=list[Run])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.3), layout="constrained", facecolor="white")
        first, between, hits = figure.subplots(1, 3)
        draw(first, runs, "Mean time to first token, s", lambda run: run.results.ttft.mean)
        first.set_yscale("log")
        draw(between, runs, "Inter-token time, p99, ms", lambda run: 1e3 * run.results.inter_token.p99)
        draw(hits, runs, "Prompt tokens found in a cache", lambda run: run.results.hit_rate)
        draw_oracle(hits, runs)
        hits.set_ylim(0, 1.5 * hits.get_ylim()[1])
        hits.legend(loc="upper left", ncols=2)
        figure.supxlabel("workers, load", fontsize=8.5)
        figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
