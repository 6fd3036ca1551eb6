"""The whole file."""

from __future__ import annotations

import os

from tandem.deployment.base import Section, WorkerName
from tandem.deployment.health import Health
from tandem.deployment.kv import Kv
from tandem.deployment.limits import Limits
from tandem.deployment.model import Model
from tandem.deployment.parallel import Parallel
from tandem.deployment.routing import Routing
from tandem.deployment.server import GATEWAY, Server, Tls
from tandem.deployment.worker import Worker
from tandem.errors import TandemError
from tandem.logs import Logging
from tandem.messages import StageName, does
from tandem.tracing.settings import Tracing


class Deployment(Section, frozen=True, kw_only=True):
    """A whole deployment."""

    name: WorkerName
    model: Model
    worker: list[Worker]
    server: Server = Server()
    limits: Limits = Limits()
    health: Health = Health()
    kv: Kv = Kv()
    routing: Routing = Routing()
    parallel: Parallel = Parallel()
    logging: Logging = Logging()
    tracing: Tracing = Tracing()
    tls: Tls | None = None

    def workers(self, stage: StageName) -> list[Worker]:
        """The workers that do a stage, in file order."""
        return [w for w in self.worker if does(w.stage, stage)]

    @property
    def parts_here(self) -> list[str]:
        """What runs on this Triton: ``server.only``, or the gateway and all workers that have no address."""
        return self.server.only or [GATEWAY, *(w.name for w in self.worker if not w.address)]

    @property
    def has_gateway(self) -> bool:
        """Whether clients are served here: by ``llm``, ``ensemble`` and ``preprocess``."""
        return GATEWAY in self.parts_here

    @property
    def workers_here(self) -> list[Worker]:
        """The workers that this Triton serves, in file order."""
        return [w for w in self.worker if w.name in self.parts_here]

    @property
    def is_spread(self) -> bool:
        """Whether several Tritons serve it."""
        return any(w.address for w in self.worker)

    @property
    def hides_workers(self) -> bool:
        """Whether the gRPC port here is for those with a certificate alone: it is a worker's with an address."""
        return self.tls is not None and any(w.address for w in self.workers_here)

    def find_worker(self, name: str) -> Worker:
        """The worker called ``name``.

        Raises:
            TandemError: there is none.
        """
        for worker in self.worker:
            if worker.name == name:
                return worker
        known = ", ".join(w.name for w in self.worker)
        raise TandemError("not_found", f"worker {name!r} is not in the deployment; it has {known}")

    def threads_of(self, worker: Worker, rank: int = 0) -> int:
        """CPU threads of one rank, to be asked on its host: as given, or an even share of the host's cores."""
        if worker.threads is not None:
            return worker.threads
        here = worker.host_of(rank)
        sharers = self.workers_here if worker.name in self.parts_here else [worker]
        ranks = sum(w.host_of(r) == here for w in sharers for r in range(w.group_size))
        return max(1, (os.cpu_count() or 1) // ranks)
