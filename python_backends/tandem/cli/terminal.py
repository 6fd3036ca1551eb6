"""Speaking with the person at the terminal: answers go to standard output, everything else to standard error."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Interrupted(BaseException):
    """The process was asked to end by signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def catch_signals() -> None:
    """From now on Ctrl-C, a closed terminal and a polite kill unwind the stack, so that servers are stopped."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def showing_progress(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner (or, where there is no terminal, plain lines) that says ``what`` and what is awaited."""
    if not errors.is_terminal:
        yield lambda line: errors.print(f"{what}: {line}", markup=False, soft_wrap=True)
        return
    with errors.status(f"{what} …") as spinner:
        yield lambda line: spinner.update(f"{what}: {line}")


def count(number: int, thing: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(num_bytes: float) -> str:
    """A size as people read it: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
