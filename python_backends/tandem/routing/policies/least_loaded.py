"""Policy ``least_loaded``: the worker with the fewest requests in hand."""

from __future__ import annotations

from random import Random

from tandem.routing.cost import Cost
from tandem.routing.policies.base import Candidates, Choice


class LeastLoadedPolicy:
    """Fewest requests, ties by chance."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Candidates) -> Choice:
        """One of the workers with the fewest requests."""
        in_hand = candidates.table.in_hand.copy()
        places = candidates.places()
        fewest = min(in_hand[p] for p in places)
        place = self._random.choice([p for p in places if in_hand[p] == fewest])
        return Choice(place, "fewest requests in hand", Cost(in_hand, unit="requests"), candidates.bar, place)
