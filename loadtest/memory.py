"""Whether the memory of processes is flat while requests pass through: samples, a straight line, a verdict."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

SAMPLE_S = 0.5
LEAST_SAMPLES = 16
"""Fewer in the second half say nothing."""
OUTLOOK = 10
"""The line is followed for this many times the requests that were sent …"""
ALLOWED_SHARE = 0.25
"""… and may add this much of the memory held now: noise of a few pages passes, a steady loss per request does not."""

Sample = tuple[int, int]
"""Requests done so far, resident bytes."""


@dataclass(frozen=True)
class Memory:
    """One process over the second half of a round."""

    resident_mib: float
    """Median."""
    bytes_per_request: float
    """Slope of the straight line."""
    outlook: float
    """What the line would add in ``OUTLOOK`` times the round's requests, over the median."""

    @property
    def flat(self) -> bool:
        """Whether this is noise."""
        return self.outlook <= ALLOWED_SHARE


class Work(Protocol):
    """What the processes are kept busy with."""

    @property
    def done(self) -> int:
        """Requests that have ended."""
        ...


async def watch_memory(samples: dict[str, list[Sample]], work: Work) -> None:
    """Resident bytes of every process below this one, twice a second, until cancelled."""
    names: dict[psutil.Process, str] = {}
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                name = names.setdefault(process, process_name(process))
                samples.setdefault(name, []).append((work.done, process.memory_info().rss))
            except psutil.Error:
                continue
        await asyncio.sleep(SAMPLE_S)


def judge_all(samples: dict[str, list[Sample]], requests: int) -> dict[str, Memory | None]:
    """A verdict on each process that lived to the end of a round; a child of a moment is none of our business."""
    end = max((values[-1][0] for values in samples.values()), default=0)
    return {name: judge(values, requests) for name, values in samples.items() if values[-1][0] == end}


def judge(samples: Sequence[Sample], requests: int) -> Memory | None:
    """The second half of a round of ``requests``; None where there are too few samples to tell."""
    half = [(done, resident) for done, resident in samples if done >= requests / 2]
    if len(half) < LEAST_SAMPLES or half[0][0] == half[-1][0]:
        return None
    median = statistics.median(resident for _, resident in half)
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    return Memory(median / 2**20, slope, OUTLOOK * requests * slope / median)


def process_name(process: psutil.Process) -> str:
    """What a process is, and its id."""
    line = process.cmdline()
    for word in line:
        if word.endswith("model.py"):
            return f"stub {Path(word).parents[1].name} {process.pid}"
    if "--worker" in line:
        return f"engine {line[line.index('--worker') + 1]} {process.pid}"
    return f"{process.name()} {process.pid}"
