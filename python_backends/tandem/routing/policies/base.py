"""What a routing policy is."""

from __future__ import annotations

from typing import Protocol

import msgspec

from tandem.routing.cost import Cost, Costs
from tandem.routing.disaggregation import Task
from tandem.routing.table import Numbers, WorkerTable


class Candidates(msgspec.Struct, frozen=True, gc=False):
    """The workers that can take a request for a task now."""

    task: Task
    table: WorkerTable
    bar: Numbers
    """0 for those that may be chosen, at least one; infinite for all others. To be added to whatever shall be least."""
    costs: Costs
    """Of this request, in seconds."""

    def places(self) -> list[int]:
        """Of those that may be chosen, in ascending order."""
        return (self.bar == 0.0).nonzero()[0].tolist()  # type: ignore[no-any-return]


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A worker, and why it was that one."""

    place: int
    reason: str
    cost: Cost
    """What the policy weighed, of all workers."""
    bar: Numbers
    """0 for those that it was chosen from."""
    cheapest: int
    """The one that costs least of all these, where the policy weighs costs and then leaves something to chance; else
    ``place``."""


class Policy(Protocol):
    """Chooses workers. With the same seed it chooses alike from like candidates; it has no clock and never waits."""

    def choose(self, candidates: Candidates) -> Choice:
        """One of the candidates, whatever it costs."""
        ...
