"""Policy ``kv``: the least cost in seconds; cached prefixes, queues, decode load and KV memory all count.

A cache hit is worth the seconds it saves, to the request and to others: a worker that has to be waited for longer than
that loses to an idle one. A prompt that is new to all goes where blocks of the least worth give way. Workers that come
out nearly alike share the requests at random, so that several routers, each of which hears of the others' choices only
with the next report, do not all run to the same one.
"""

from __future__ import annotations

from random import Random

import numpy as np

from tandem.routing.policies.base import Candidates, Choice
from tandem.routing.weighing import find_near


class KvPolicy:
    """Least cost, near-ties by weighted chance."""

    def __init__(self, seed: int, spread: float) -> None:
        """Costs that exceed the least by no more than this part of it are as good as it."""
        self._random = Random(seed)
        self._near = 1.0 + spread
        self._places = np.zeros(0, np.int64)

    def choose(self, candidates: Candidates) -> Choice:
        """The cheapest worker, or one that is nearly as cheap and has no more of the prompt to read."""
        costs, bar = candidates.costs, candidates.bar
        cost = costs.of(candidates.task)
        total = cost.total
        if len(self._places) < len(total):
            self._places = np.zeros(len(total), np.int64)
        # Never give up a cache hit for the sake of chance; to decode it makes no difference.
        lacking = bar if candidates.task == "decode" else costs.uncached
        best, count = find_near(total, bar, lacking, self._near, self._places)
        if count == 1:
            return Choice(best, "least cost", cost, bar, best)
        # The cheaper of two: all have a chance, the cheaper the better, and it takes no sums over all of them.
        draw = self._random.random
        places = self._places
        one, other = places.item(int(count * draw())), places.item(int(count * draw()))
        place = one if total.item(one) <= total.item(other) else other
        return Choice(place, f"drawn among {count} of nearly the least cost", cost, bar, best)
