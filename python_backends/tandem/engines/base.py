"""The engine protocol: what every engine is to the rest of Tandem.

An engine lives in a process of its own (``engines/server.py``), never in the Triton stub. Nothing in it
blocks the caller: work goes in, events come out through one callback, from the engine's own threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from tandem.deployment import Deployment, Worker
from tandem.messages import AnyWork, EngineEvent, KvEvent, Load, WorkerInfo

if TYPE_CHECKING:
    from tandem.parallel.group import RankGroup


class EventSink(Protocol):
    """Takes all that happened in one step, from any thread, without blocking."""

    def __call__(self, events: list[EngineEvent], load: Load, kv: Sequence[KvEvent] = (), /) -> None:
        """``kv``: what the prefix cache took in and gave up, in its order."""
        ...


LoadingSink = Callable[[str, float], None]
"""Takes what is being loaded and the fraction done, 0 to 1."""


class Engine(Protocol):
    """One model on one device or group of devices."""

    @property
    def info(self) -> WorkerInfo:
        """Who this worker is. Valid once the engine is built."""
        ...

    def start(self, sink: EventSink) -> None:
        """Begin to take work; every event goes to ``sink``."""
        ...

    def submit(self, work: list[AnyWork]) -> None:
        """Queue work. What cannot be done ends in a ``Failed`` event, never in an exception."""
        ...

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests before the step after next, and end the leases granted for them; each one that has not
        ended ends in ``Finished("cancelled")``."""
        ...

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to move KV to or from ``peer``; replaces an older epoch of the same worker.

        Raises:
            TandemError: ``worker_incompatible``, naming in what the two differ.
        """
        ...

    def unpair(self, worker_id: str) -> None:
        """Forget a peer that is gone for good; an unknown one is no error."""
        ...

    def stop(self) -> None:
        """End all threads and free the device. Running requests are dropped."""
        ...


EngineFactory = Callable[[Deployment, Worker, int, LoadingSink], Engine]
"""Builds an engine from (deployment, worker, epoch, loading sink); raises ``TandemError`` with what is wrong."""

EngineFollower = Callable[[Deployment, Worker, "RankGroup"], None]
"""Does a rank's part, all ranks but the leader's, until the leader says stop; raises whatever ends the whole group."""
