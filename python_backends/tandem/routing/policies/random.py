"""Policy ``random``: any worker, all with the same chance."""

from __future__ import annotations

from random import Random

from tandem.routing.cost import Cost
from tandem.routing.policies.base import Candidates, Choice


class RandomPolicy:
    """Chance alone."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Candidates) -> Choice:
        """Any of the candidates."""
        places = candidates.places()
        in_hand = candidates.table.in_hand.copy()
        place = self._random.choice(places)
        reason = f"drawn among {len(places)}"
        return Choice(place, reason, Cost(in_hand, unit="requests"), candidates.bar, place)
