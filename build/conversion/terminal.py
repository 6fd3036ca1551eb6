"""What a conversion shows in the terminal."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conversion.convert import convert
from conversion.shards import write_shards
from tandem.errors import TandemError
from tandem.messages import Partition

_console = Console(stderr=True)


def convert_showing(source: Path, out: Path) -> None:
    """Convert with a progress bar, and say where the result is."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(f"Converting {source.name}", total=None)
        fingerprint = convert(source, out, lambda done, total: bar.update(task, completed=done, total=total))
    _console.print(f"Model ready: {out} (fingerprint {fingerprint[:12]})", highlight=False, soft_wrap=True)


def shard_showing(model_dir: Path, partition: Partition) -> None:
    """Cut a model with a progress bar, and say where the files are."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(f"Cutting {model_dir.name}", total=None)
        out = write_shards(model_dir, partition, lambda done, total: bar.update(task, completed=done, total=total))
    _console.print(f"Ready: {out} ({partition.size} ranks)", highlight=False, soft_wrap=True)


def waiting(what: str) -> AbstractContextManager[object]:
    """Shows that something goes on, while it does."""
    return _console.status(what)


def fail(error: TandemError) -> None:
    """One plain sentence instead of a traceback, and exit code 1."""
    _console.print(f"Error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
