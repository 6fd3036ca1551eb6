"""An engine in the place of TensorRT-LLM's: it waits for the nodes of its world, and tells how many they are."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tandem.deployment import Deployment, Worker
from tandem.engines.base import EventSink, LoadingSink
from tandem.messages import AnyWork, Finished, Load, Tokens, WorkerInfo
from tests.unit.parallel.engine import describe

DEADLINE_S = 60.0


class Leader:
    """The process beside rank 0."""

    def __init__(self, worker: Worker, epoch: int, nodes: int) -> None:
        self._info, self._nodes = describe(worker, epoch), nodes

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def start(self, sink: EventSink) -> None:
        self._sink = sink

    def submit(self, work: list[AnyWork]) -> None:
        """``die`` is the end; anything else is answered with what there is."""
        for one in work:
            if one.request_id == "die":
                os._exit(3)
            hidden = any(name.startswith(("OMPI_", "UCX_", "PMIX_")) for name in os.environ)
            proxy = os.environ.get("TLLM_SPAWN_PROXY_PROCESS") == "1"
            tokens = Tokens(request_id=one.request_id, index=0, token_ids=[self._nodes, int(hidden), int(proxy)])
            self._sink([tokens, Finished(request_id=one.request_id, reason="stop")], Load())

    def cancel(self, request_ids: list[str]) -> None:
        pass

    def stop(self) -> None:
        print("the leader stops in good order", file=sys.stderr, flush=True)


def create(_deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> Leader:
    deadline = time.monotonic() + DEADLINE_S
    directory = Path(os.environ["TANDEM_TEST_NODES"])
    while len(nodes := [path for path in directory.iterdir() if not path.suffix]) < worker.group_size:
        loading("nodes", len(nodes) / worker.group_size)
        assert time.monotonic() < deadline, "the nodes do not come"
        time.sleep(0.05)
    return Leader(worker, epoch, len(nodes))
