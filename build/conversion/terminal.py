"""What a conversion shows in the terminal."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from conversion.convert import convert
from tandem.errors import TandemError

console = Console(stderr=True)


def convert_showing(source: Path, out: Path) -> None:
    """Convert with a progress bar, and say where the result is."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"Converting {source.name}", total=None)
        fingerprint = convert(source, out, lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"Model ready: {out} (fingerprint {fingerprint[:12]})", highlight=False, soft_wrap=True)


def waiting(what: str) -> AbstractContextManager[object]:
    """Shows that something goes on, while it does."""
    return console.status(what)


def fail(error: TandemError) -> None:
    """One plain sentence instead of a traceback, and exit code 1."""
    console.print(f"Error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
