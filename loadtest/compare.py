"""Two runs beside each other: ``python loadtest/compare.py A.json B.json`` (``make compare A=… B=…``).

Takes the JSON of any two load reports, overhead runs or replays. Says of each figure whether the second run differs
from the first by more than the noise of their rounds. With ``--strict``, exit status 1 where anything is worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from live.rounds import Comparison, Figure, FigureFile, compare_all
from rich.console import Console
from rich.table import Table

STYLES = {"better": "green", "worse": "red"}


def read_figures(path: Path) -> FigureFile:
    """A report's figures.

    Raises:
        SystemExit: it is no report with figures.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=FigureFile)
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise SystemExit(f"{path}: no report with figures: {error}") from error


def table(comparisons: list[Comparison], before: str, after: str) -> Table:
    """For the terminal: medians, with half of the range of the rounds."""
    shown = Table(title=f"{before} → {after}", caption="± is half of the range of the rounds; chance: of equal runs")
    for heading in ("", "unit", before, after, "change", "chance", "verdict"):
        shown.add_column(heading, justify="left" if heading in ("", "unit", "verdict") else "right")
    for one in comparisons:
        shown.add_row(
            one.after.name,
            one.after.unit,
            _cell(one.before),
            _cell(one.after),
            f"{100 * one.change:+.1f} %",
            f"{100 * one.chance:.1f} %",
            one.verdict,
            style=STYLES.get(one.verdict),
        )
    return shown


def _cell(figure: Figure) -> str:
    return f"{figure.median:,.4g} ± {figure.spread:,.2g}"


def main(
    before: Annotated[Path, typer.Argument(help="The JSON of one run.")],
    after: Annotated[Path, typer.Argument(help="The JSON of another of the same kind.")],
    strict: Annotated[bool, typer.Option(help="Exit status 1 where a figure is worse beyond the noise.")] = False,
) -> None:
    """Compare two runs."""
    old, new = read_figures(before), read_figures(after)
    if old.title != new.title:
        raise SystemExit(f"{before} is of a {old.title}, {after} of a {new.title}: these cannot be compared")
    comparisons = compare_all(old.figures, new.figures)
    Console(width=max(120, Console().width)).print(table(comparisons, f"A {before.stem}", f"B {after.stem}"))
    if strict and any(one.verdict == "worse" for one in comparisons):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
