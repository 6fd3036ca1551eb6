"""Which worker gets the next request: the one with the least in hand. Pure functions over plain data."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tandem.errors import TandemError


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the router sees it. ``outstanding`` is what this orchestrator has given it and not got back."""

    name: str
    healthy: bool
    outstanding: int
    queued: int
    running: int


def choose(stage: str, candidates: Sequence[Candidate]) -> str:
    """The name of the healthy worker with the fewest requests in hand; ties go by name.

    A worker's own report lags behind what was just sent to it, so the larger of report and own count decides.

    Raises:
        TandemError: ``worker_lost`` when no worker is healthy.
    """
    healthy = [c for c in candidates if c.healthy]
    if not healthy:
        names = ", ".join(c.name for c in candidates)
        raise TandemError("worker_lost", f"no {stage} worker is ready (deployed: {names}); try again shortly")
    return min(healthy, key=lambda c: (max(c.outstanding, c.queued + c.running), c.name)).name
