"""Draws the last benchmark: ``python loadtest/plot.py`` reads ``.tandem/bench.json`` (``make bench`` writes it).

Each panel compares two things that took turns in one run; figures of different panels come from different minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from engine_bench import EngineBenchReport
from kv_bench import KvBenchReport
from matplotlib.figure import Figure
from report import ROOT, read_bench
from stack_bench import StackBenchReport
from style import BLUE, GREY, ORANGE, RED, STYLE

WIDTH = 0.38
"""Of a bar; two stand side by side."""
DECODE = "decode, "


def draw_engine(axes: Any, report: EngineBenchReport) -> None:
    """Decode tokens/s of the bare engine beside transformers, under what the machine allows."""
    rows = [row for row in report.rows if row.name.startswith(DECODE)]
    _bars(axes, -WIDTH / 2, "transformers", GREY, [row.transformers for row in rows])
    _bars(axes, WIDTH / 2, "bare engine", BLUE, [row.engine for row in rows])
    limits = [min(row.bandwidth_limit, row.compute_limit) for row in rows]
    left, right = ([place + side * WIDTH for place in range(len(rows))] for side in (-1, 1))
    axes.hlines(limits, left, right, RED, "dashed", lw=1.2, label="bandwidth or compute limit")
    _name_batches(axes, [row.name for row in rows], "Bare engine beside transformers")


def draw_stack(axes: Any, report: StackBenchReport) -> None:
    """Decode tokens/s of the whole stack beside the bare engine."""
    rows = [row for row in report.rows if row.name.startswith(DECODE)]
    _bars(axes, -WIDTH / 2, "bare engine", BLUE, [row.engine for row in rows])
    _bars(axes, WIDTH / 2, "whole stack", ORANGE, [row.stack for row in rows])
    _name_batches(axes, [row.name for row in rows], "Whole stack beside the bare engine")


def draw_kv(axes: Any, report: KvBenchReport) -> None:
    """GB/s of a KV pull beside memcpy of the same bytes, which are in memory, not in caches."""
    rows = [row for row in report.rows if not row.cached]
    sizes = [f"{row.mib}" for row in rows]
    axes.plot(sizes, [row.memcpy_gb_per_s for row in rows], "o-", color=GREY, label="memcpy, one thread")
    axes.plot(sizes, [row.pull_gb_per_s for row in rows], "o-", color=BLUE, label="KV pull, confirmed")
    axes.set_xlabel("size, MiB")
    axes.set_ylabel("GB/s")
    axes.set_ylim(bottom=0)
    axes.set_title("KV transfer beside memcpy")
    axes.legend(loc="upper right")


def _bars(axes: Any, shift: float, label: str, color: str, heights: list[float]) -> None:
    """One bar per batch, with its figure above."""
    bars = axes.bar([place + shift for place in range(len(heights))], heights, WIDTH, color=color, label=label)
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7.5)


def _name_batches(axes: Any, names: list[str], title: str) -> None:
    axes.set_xticks(range(len(names)), [name.removeprefix(DECODE) for name in names])
    axes.set_ylabel("decode tokens/s")
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.set_title(title)
    axes.legend(loc="upper left")


def main(
    bench: Annotated[Path, typer.Option(help="What make bench wrote.")] = ROOT / ".tandem" / "bench.json",
    out: Annotated[Path, typer.Option(help="The picture; .svg or .png.")] = ROOT / "docs" / "pictures" / "bench.svg",
) -> None:
    """Draw the picture."""
    report = read_bench(bench)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.3), layout="constrained", facecolor="white")
        engine, stack, kv = figure.subplots(1, 3)
        draw_engine(engine, report.engine)
        draw_stack(stack, report.stack)
        draw_kv(kv, report.kv)
        figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
