"""``python -m tests.compose``: from a bare machine to a table of what held, and back. As root, on Debian."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.compose.machine import IMAGE, build_image, docker
from tests.compose.measure import measure
from tests.compose.stack import Stack
from tests.compose.steps import STEPS

console = Console(width=150)


class Report:
    """What was done, how long it took, and what came of it."""

    def __init__(self) -> None:
        self.failed = False
        self._table = Table("step", "seconds", "result")
        self._began = time.monotonic()

    def do(self, name: str, step: Callable[[], str | None]) -> bool:
        """One step; a failure is noted, with its place on the console."""
        console.print(f"[dim]{time.monotonic() - self._began:6.0f} s  {name} …[/dim]")
        start = time.monotonic()
        try:
            result, good = step() or "done", True
        except Exception as error:
            traceback.print_exc()
            result, good = f"{type(error).__name__}: {error}", False
            self.failed = True
        self._table.add_row(
            name, f"{time.monotonic() - start:.0f}", f"[{'green' if good else 'red'}]{escape(result[:400])}[/]"
        )
        return good

    def show(self) -> None:
        """The table."""
        self._table.title = (
            f"Compose test: {'FAILED' if self.failed else 'passed'}, {time.monotonic() - self._began:.0f} s"
        )
        console.print(self._table)


def main(
    only: Annotated[str, typer.Option(help="Names of steps, with commas between.")] = "",
    image: Annotated[str, typer.Option(help="An image that is there, in place of one that is built.")] = "",
    load_report: Annotated[Path | None, typer.Option(help="First, measure users' load; the .html to write.")] = None,
) -> None:
    """Build, start, use, break, change and end a whole deployment in containers."""
    signal.signal(signal.SIGTERM, _leave)
    chosen = [step for step in STEPS if not only or step.__name__ in only.split(",")]
    report = Report()
    try:
        with docker(), contextlib.ExitStack() as ends:
            if image or report.do("image", build_image):
                stack = Stack(image or IMAGE)
                ends.callback(stack.down)
                if report.do("start", lambda: stack.up(prefill=2)):
                    if load_report is not None:
                        report.do("load report", lambda: measure(stack, load_report))
                    for step in chosen:
                        report.do(step.__name__.replace("_", " "), lambda step=step: step(stack))  # type: ignore[misc]
                report.do("end", stack.down)
                report.do("nothing left", lambda: _require_nothing(stack))
    finally:
        report.show()
    sys.exit(report.failed)


def _require_nothing(stack: Stack) -> None:
    if left := stack.left_over():
        raise RuntimeError(f"left over: {left}")


def _leave(*_: object) -> NoReturn:
    sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
