"""Policy ``power_of_two``: of two workers drawn at random, the one with fewer requests in hand."""

from __future__ import annotations

from random import Random

from tandem.routing.cost import Cost
from tandem.routing.policies.base import Candidates, Choice


class PowerOfTwoPolicy:
    """Nearly as even as the least loaded, and routers that do not know of each other do not herd."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Candidates) -> Choice:
        """The less loaded of two."""
        places = candidates.places()
        in_hand = candidates.table.in_hand.copy()
        drawn = self._random.sample(places, min(2, len(places)))
        place = min(drawn, key=lambda p: in_hand[p])
        names = " and ".join(candidates.table.names[p] for p in drawn)
        return Choice(place, f"fewest requests of {names}", Cost(in_hand, unit="requests"), candidates.bar, place)
