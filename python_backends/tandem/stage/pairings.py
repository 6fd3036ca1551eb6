"""Which peers an engine is paired with, and for whom: a peer is forgotten when no lane wants it any more."""

from __future__ import annotations

import threading


class Pairings:
    """Counts lanes by peer. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[str, set[str]] = {}
        """By worker id."""

    def add(self, lane: str, worker_id: str) -> None:
        """A lane wants this peer."""
        with self._lock:
            self._lanes.setdefault(worker_id, set()).add(lane)

    def remove(self, lane: str, worker_id: str) -> bool:
        """A lane does not want this peer any more; whether it was the last one that did."""
        with self._lock:
            lanes = self._lanes.get(worker_id, set())
            lanes.discard(lane)
            return not lanes and self._lanes.pop(worker_id, None) is not None

    def remove_lane(self, lane: str) -> list[str]:
        """A lane is gone; returns the peers that nobody wants any more."""
        with self._lock:
            wanted = list(self._lanes)
        return [worker_id for worker_id in wanted if self.remove(lane, worker_id)]

    def clear(self) -> None:
        """A new engine begins with no peers."""
        with self._lock:
            self._lanes.clear()
