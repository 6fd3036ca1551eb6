"""Who is next: strict priorities, and within each the tenants share by deficit round robin over tokens."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What a queue needs to know of a request."""

    @property
    def priority(self) -> int:
        """1 is served first."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def cost(self) -> int:
        """Tokens that it may take: prompt and answer."""
        ...


T = TypeVar("T", bound=Queued)


class _Backlog(Generic[T]):
    """What one tenant has waiting in one priority, in the order of its coming."""

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self.cost = 0
        self.deficit = 0
        """Tokens that it may still take before the others have their turn."""


class _Level(Generic[T]):
    """One priority: its tenants in the order of their turns, the one whose turn it is first."""

    def __init__(self) -> None:
        self.turns: OrderedDict[str, _Backlog[T]] = OrderedDict()
        self.cost = 0
        self.quantum = 0
        """What a turn adds: the largest cost so far, so that everybody gets something out of every turn."""
        self._begun = False
        """Whether the first one's turn has begun."""

    def add(self, one: T) -> None:
        backlog = self.turns.setdefault(one.tenant, _Backlog())
        backlog.waiting.append(one)
        backlog.cost += one.cost
        self.cost += one.cost
        self.quantum = max(self.quantum, one.cost)

    def head(self) -> T:
        while True:
            tenant, backlog = next(iter(self.turns.items()))
            if not self._begun:
                self._begun = True
                backlog.deficit += self.quantum
            if backlog.waiting[0].cost <= backlog.deficit:
                return backlog.waiting[0]
            self._begun = False
            self.turns.move_to_end(tenant)

    def remove(self, one: T, *, served: bool) -> None:
        backlog = self.turns[one.tenant]
        if backlog.waiting[0] is one:
            backlog.waiting.popleft()
        else:
            backlog.waiting.remove(one)
        backlog.cost -= one.cost
        self.cost -= one.cost
        backlog.deficit -= one.cost if served else 0
        if not backlog.waiting:  # who has nothing waiting saves nothing up
            self._begun &= next(iter(self.turns)) != one.tenant
            del self.turns[one.tenant]

    def cost_before(self, tenant: str, cost: int) -> int:
        """While a tenant is served so much, each of the others is served no more than that, about, and what it owes."""
        own, owed = (mine.cost, max(0, -mine.deficit)) if (mine := self.turns.get(tenant)) else (0, 0)
        others = (min(backlog.cost, own + cost + owed) for name, backlog in self.turns.items() if name != tenant)
        return own + sum(others)


class FairQueue(Generic[T]):
    """Requests that wait. A request that is not served yet keeps its turn: none is passed over because it is large."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for priority in sorted(self._levels):
            for backlog in self._levels[priority].turns.values():
                yield from backlog.waiting

    def add(self, one: T) -> None:
        """Put a request behind those of its priority and tenant."""
        self._levels.setdefault(one.priority, _Level()).add(one)
        self._count += 1

    def head(self) -> T | None:
        """The request whose turn it is; the same one until it is gone, or one of a higher priority comes."""
        return self._levels[min(self._levels)].head() if self._levels else None

    def pop(self) -> T:
        """Take out the request whose turn it is, at its tenant's expense.

        Raises:
            IndexError: nobody waits.
        """
        if (one := self.head()) is None:
            raise IndexError("pop from an empty queue")
        self._remove(one, served=True)
        return one

    def remove(self, one: T) -> None:
        """A request leaves unserved; it must be here."""
        self._remove(one, served=False)

    def charge(self, one: T) -> None:
        """A request is served without having waited here: its tenant, if it has others waiting, pays for it."""
        level = self._levels.get(one.priority)
        if level and one.tenant in level.turns:
            level.turns[one.tenant].deficit -= one.cost

    def cost_before(self, priority: int, tenant: str, cost: int) -> int:
        """Tokens that would be served before a request that came now, if no others came."""
        higher = sum(level.cost for other, level in self._levels.items() if other < priority)
        level = self._levels.get(priority)
        return higher + (level.cost_before(tenant, cost) if level else 0)

    def backlog(self, priority: int, tenant: str) -> int:
        """Tokens that a tenant has waiting in a priority."""
        level = self._levels.get(priority)
        return level.turns[tenant].cost if level and tenant in level.turns else 0

    def counts(self) -> list[tuple[int, str, int]]:
        """Priority, tenant, and how many of its requests wait there."""
        levels = self._levels.items()
        return [(priority, tenant, len(b.waiting)) for priority, level in levels for tenant, b in level.turns.items()]

    def least(self) -> T | None:
        """Whom to turn away where there is no room for all: the last of the largest backlog of the lowest priority."""
        if not self._levels:
            return None
        backlogs = self._levels[max(self._levels)].turns.values()
        return max(backlogs, key=lambda backlog: backlog.cost).waiting[-1]

    def _remove(self, one: T, *, served: bool) -> None:
        level = self._levels[one.priority]
        level.remove(one, served=served)
        self._count -= 1
        if not level.turns:
            del self._levels[one.priority]
