"""The workers that one ``[[worker]]`` of the deployment file stands for: one without an address, or one at each."""

from __future__ import annotations

from typing import NamedTuple

from tandem.deployment import Worker
from tandem.messages import Role


class Replica(NamedTuple):
    """One of them."""

    worker: Worker
    address: str | None = None
    """Of its Triton's gRPC port, as numbers (10.0.0.2:8001); None: it is on this Triton."""

    @property
    def name(self) -> str:
        """What an orchestrator calls it: ``decode_0``, or ``decode_0@10.0.0.2:8001``."""
        return f"{self.worker.name}@{self.address}" if self.address else self.worker.name

    @property
    def stage(self) -> Role:
        """As the deployment file has it."""
        return self.worker.stage
