"""A prefill that is late is started a second time elsewhere; whoever is first goes on, the other one is cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tandem.deployment import Limits
from tandem.messages import EngineEvent
from tandem.orchestrator.attempt import Attempt
from tandem.orchestrator.recovery import WorkerFailed

REMEMBERED = 256
"""Prefills by which the usual is judged."""
MOST_SAVED = 8.0
"""Second starts that are allowed at once, after a time without any."""


class Hedging:
    """When a prefill is late, and how many may be started twice: for all requests of one orchestrator."""

    def __init__(self, limits: Limits) -> None:
        self._share, self._factor, self._least_s = limits.hedge_share, limits.hedge_factor, limits.hedge_after_s
        self._saved = 0.0
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)
        """What prefills took, in terms of what was expected of them."""

    def late_after(self, expected_s: float) -> float:
        """The seconds after which a prefill is late: it exceeds what was expected by a factor, and most others."""
        usual = sorted(self._ratios)[int(0.95 * len(self._ratios))] if self._ratios else 0.0
        return max(self._least_s, expected_s * max(self._factor, usual))

    def took(self, expected_s: float, seconds: float) -> None:
        """A prefill has ended. Each makes room for a part of a second start."""
        self._saved = min(MOST_SAVED, self._saved + self._share)
        if expected_s > 0:
            self._ratios.append(seconds / expected_s)

    @property
    def affordable(self) -> bool:
        """Whether a second start is within the budget."""
        return self._saved >= 1.0

    def spend(self) -> None:
        """Count a second start."""
        self._saved -= 1.0


async def race(
    first: Attempt, late_s: float, make_second: Callable[[], Attempt | None]
) -> tuple[Attempt, list[EngineEvent]]:
    """Begin an attempt, and after ``late_s`` a second one if ``make_second`` has one. Returns the one that came first
    and its events (see ``Attempt.begin``); ending the other one is the caller's.

    Raises:
        TandemError: of the one that failed last; at once where it is no worker's.
    """
    runs = {_run(first): first}
    try:
        done, _ = await asyncio.wait(runs, timeout=late_s)
        if not done and (second := make_second()) is not None:
            runs[_run(second)] = second
        while True:
            done, _ = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
            task = next(iter(done))
            attempt, error = runs.pop(task), task.exception()
            if error is None:
                return attempt, task.result()
            if not runs or not isinstance(error, WorkerFailed):
                raise error
    finally:
        for task in runs:
            task.cancel()


def _run(attempt: Attempt) -> asyncio.Task[list[EngineEvent]]:
    task = asyncio.ensure_future(attempt.begin())
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # the slower one's is nobody's concern
    return task
