"""How lane messages reach a stage model."""

from __future__ import annotations

from typing import Protocol

from tandem.messages import LaneReply, LaneRequest


class Transport(Protocol):
    """One stage model at one address. Calls block; several threads may call at once."""

    def call(self, request: LaneRequest) -> LaneReply:
        """Send one lane message and wait for its one reply.

        Raises:
            TandemError: ``worker_lost`` when the stage model does not answer.
        """
        ...

    def close(self) -> None:
        """Nobody will call any more."""
        ...
