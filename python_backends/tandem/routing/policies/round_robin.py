"""Policy ``round_robin``: one after the other."""

from __future__ import annotations

from random import Random

from tandem.routing.cost import Cost
from tandem.routing.disaggregation import Task
from tandem.routing.policies.base import Candidates, Choice


class RoundRobinPolicy:
    """In turn, for each task; the first one by chance, so that several routers do not go in step."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._last: dict[Task, int] = {}

    def choose(self, candidates: Candidates) -> Choice:
        """The next candidate after the last one chosen."""
        places = candidates.places()
        task = candidates.task
        last = self._last[task] if task in self._last else self._random.choice(places)
        place = self._last[task] = next((p for p in places if p > last), places[0])
        in_hand = candidates.table.in_hand.copy()
        return Choice(place, "its turn", Cost(in_hand, unit="requests"), candidates.bar, place)
