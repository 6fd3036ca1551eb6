"""The pictures of a load report, as SVG to be put into its page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from style import BLUE, GREY, ORANGE, RED, STYLE

from live.load_report import LoadReport
from live.rounds import Figure as Measured

COLOURS = (BLUE, ORANGE, "#5aae61", "#c2a5cf", GREY, "#b35806", "#1b7837", "#762a83")


def plots(report: LoadReport) -> dict[str, str]:
    """SVG by title."""
    drawn: dict[str, Callable[[LoadReport], Figure]] = {"Latency": draw_latency, "Rounds": draw_rounds}
    if any(round_.resources for round_ in report.rounds):
        drawn["Resources"] = draw_resources
    with mpl.rc_context({**STYLE, "svg.fonttype": "none"}):
        return {title: to_svg(draw(report)) for title, draw in drawn.items()}


def to_svg(figure: Figure) -> str:
    """The element alone, as HTML takes it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def draw_latency(report: LoadReport) -> Figure:
    """How TTFT is distributed in each round, and its percentiles by kind of user."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    spread, kinds = figure.subplots(1, 2)
    for number, round_ in enumerate(report.rounds):
        values = 1e3 * np.sort(round_.ttft)
        shares = 100 * np.arange(1, len(values) + 1) / max(1, len(values))
        spread.plot(values, shares, color=BLUE, alpha=0.35 + 0.65 / (number + 1), lw=1.2, label=f"round {number + 1}")
    spread.axvline(1e3 * report.settings.slo.ttft_s, color=RED, ls="--", lw=1.2, label="SLO")
    spread.set_xscale("log")
    spread.set_xlabel("TTFT, ms")
    spread.set_ylabel("% of requests")
    spread.legend(fontsize=7)
    names = sorted({name for round_ in report.rounds for name in round_.kinds})
    for shift, (label, colour) in zip((-0.2, 0.2), (("p50", BLUE), ("p99", ORANGE)), strict=True):
        heights = [1e3 * _median_of_kind(report, name, label) for name in names]
        bars = kinds.bar([place + shift for place in range(len(names))], heights, 0.38, color=colour, label=label)
        kinds.bar_label(bars, fmt="%.0f", padding=1, fontsize=7)
    kinds.set_xticks(range(len(names)), names)
    kinds.set_ylabel("TTFT, ms")
    kinds.legend()
    return figure


def _median_of_kind(report: LoadReport, name: str, percentile: str) -> float:
    found = [getattr(r.kinds[name].ttft, percentile) for r in report.rounds if name in r.kinds]
    return float(np.median(found))


def draw_rounds(report: LoadReport) -> Figure:
    """A panel for each figure: a dot for each round, and their median."""
    columns = 4
    rows = -(-len(report.figures) // columns)
    figure = Figure(figsize=(11, 1.3 * rows), layout="constrained")
    for axes, measured in zip(figure.subplots(rows, columns, squeeze=False).flat, report.figures, strict=False):
        _dots(axes, measured)
    for axes in figure.axes[len(report.figures) :]:
        axes.set_visible(False)
    return figure


def _dots(axes: Any, measured: Measured) -> None:
    axes.plot(measured.values, [0] * len(measured.values), "o", color=BLUE, alpha=0.6, ms=5)
    axes.axvline(measured.median, color=ORANGE, lw=1.5)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.set_title(f"{measured.name}, {measured.unit}", fontsize=8)


def draw_resources(report: LoadReport) -> Figure:
    """CPU and memory of each role over the time of the first round."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    cpu, memory = figure.subplots(1, 2)
    for (role, samples), colour in zip(sorted(report.rounds[0].resources.items()), COLOURS * 8, strict=False):
        times = [sample.at for sample in samples]
        cpu.plot(times, [sample.cores for sample in samples], color=colour, label=role)
        memory.plot(times, [sample.resident_mib for sample in samples], color=colour, label=role)
    for axes, label in ((cpu, "cores"), (memory, "resident MiB")):
        axes.set_xlabel("seconds of the first round")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    memory.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
