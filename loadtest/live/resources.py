"""What the processes of a server take: CPU time and memory, by what each process is for."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec
import psutil


class Use(msgspec.Struct, frozen=True):
    """Of all processes of one role together."""

    cpu_s: float
    """User and system, since their start."""
    resident_mib: float


class Sample(msgspec.Struct, frozen=True):
    """What one role took at one moment."""

    at: float
    """Seconds since the beginning."""
    cores: float
    """CPU seconds per second since the last sample."""
    resident_mib: float


def role_of(command: list[str], name: str) -> str:
    """What a process of a server is for: ``tritonserver``, ``stub of llm``, ``engine prefill_0``, else its name."""
    for word in command:
        if word.endswith("model.py"):
            return f"stub of {Path(word).parents[1].name}"
    if "--worker" in command:
        return f"engine {command[command.index('--worker') + 1]}"
    return name


class Processes:
    """Some processes and all below them. What a process is, is looked up once."""

    def __init__(self, *pids: int) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._roles: dict[psutil.Process, str] = {}

    def use(self) -> dict[str, Use]:
        """By role; processes that end meanwhile are left out."""
        cpu: dict[str, float] = defaultdict(float)
        memory: dict[str, float] = defaultdict(float)
        for process in self._all():
            try:
                role = self._roles.get(process) or role_of(process.cmdline(), process.name())
                self._roles[process] = role
                times, resident = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            cpu[role] += times.user + times.system
            memory[role] += resident / 2**20
        return {role: Use(cpu[role], memory[role]) for role in sorted(cpu)}

    def _all(self) -> Iterator[psutil.Process]:
        for root in self._roots:
            yield root
            try:
                yield from root.children(recursive=True)
            except psutil.Error:
                continue


def cpu_between(before: dict[str, Use], after: dict[str, Use]) -> dict[str, float]:
    """CPU seconds that each role took."""
    return {role: use.cpu_s - before[role].cpu_s for role, use in after.items() if role in before}


class Watch:
    """``with Watch(processes) as watch:`` samples until the block ends; ``watch.samples`` by role."""

    def __init__(self, processes: Processes, period_s: float = 0.5) -> None:
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self._processes, self._period_s = processes, period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        began = last = time.monotonic()
        before = self._processes.use()
        while not self._stopped.wait(self._period_s):
            now, use = time.monotonic(), self._processes.use()
            for role, cpu_s in cpu_between(before, use).items():
                self.samples[role].append(Sample(now - began, cpu_s / (now - last), use[role].resident_mib))
            before, last = use, now
