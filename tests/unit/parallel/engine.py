"""An engine of several ranks that computes next to nothing, and fails in the ways that it is asked for.

A request's id says what to do: ``sum-SIZE``, ``pids``, ``env-NAME``, or ``WAY-RANK``, the way in which one rank fails.
The answer has one token for each rank. ``TANDEM_TEST_LOADING`` is a way to fail while loading.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
import time

import numpy as np

from tandem.deployment import Deployment, Worker
from tandem.engines.base import EventSink, LoadingSink
from tandem.messages import AnyWork, Finished, KvFormat, Load, Orders, Tokens, WorkerInfo
from tandem.parallel import heartbeat
from tandem.parallel.group import RankGroup

PERIOD_S = 0.2


def fail(what: str, rank: int) -> None:
    """Fail if it is this rank's turn."""
    way, _, whose = what.partition("-")
    if whose != str(rank):
        return
    print(f"about to {way}", file=sys.stderr, flush=True)
    if way == "raise":
        raise RuntimeError("a defect")
    if way == "abort":
        os.abort()
    if way == "exit":
        os._exit(3)
    if way == "hang":
        time.sleep(600)
    if way == "freeze":  # with the interpreter's lock held, so that no other thread runs either
        ctypes.PyDLL(None).sleep(600)


def compute(what: str, group: RankGroup) -> list[int]:
    """One collective, in which all ranks have to join."""
    comm = group.comm
    assert comm is not None
    fail(what, group.rank)
    if what == "pids":
        return list(comm.allgather(os.getpid()))
    if what.startswith("env-"):
        return list(comm.allgather(int(os.environ.get(what[4:], "0"))))
    size = int(what[4:]) if what.startswith("sum-") else 1000
    total = np.full(size, group.rank + 1.0, np.float32)
    from mpi4py import MPI

    comm.Allreduce(MPI.IN_PLACE, total)
    return [int(total[0])] * group.size


def describe(worker: Worker, epoch: int) -> WorkerInfo:
    """Who the engine is."""
    return WorkerInfo(
        worker_id=worker.name,
        epoch=epoch,
        stage=worker.stage,
        engine="sum",
        kv=KvFormat(fingerprint="f", dtype="d", layout="l", block_size=1, num_layers=1, num_kv_heads=1, slice_bytes=8),
        vocab_size=10,
        max_model_len=10,
        max_batch_size=1,
    )


class Leader:
    """Rank 0."""

    def __init__(self, worker: Worker, epoch: int) -> None:
        self._group = RankGroup.current()
        self._info = describe(worker, epoch)
        self._work: queue.Queue[str] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step")

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def start(self, sink: EventSink) -> None:
        self._sink = sink
        self._thread.start()

    def submit(self, work: list[AnyWork]) -> None:
        for one in work:
            self._work.put(one.request_id)

    def cancel(self, request_ids: list[str]) -> None:
        pass

    def pair(self, peer: WorkerInfo) -> None:
        pass

    def unpair(self, worker_id: str) -> None:
        pass

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._group.order(Orders(stop=True))
        self._group.part()
        print("the leader stops in good order", file=sys.stderr)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                what = self._work.get(timeout=PERIOD_S)
            except queue.Empty:
                self._group.order(Orders())
                continue
            self._group.order(Orders(abort=[what]))
            answer = compute(what, self._group)
            tokens = Tokens(request_id=what, index=0, token_ids=answer)
            self._sink([tokens, Finished(request_id=what, reason="stop")], Load())


def load(group: RankGroup) -> None:
    """Until all ranks have."""
    fail(os.environ.get("TANDEM_TEST_LOADING", ""), group.rank)
    group.gather(0)


def create(_deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> Leader:
    loading("weights", 0.5)
    load(RankGroup.current())
    return Leader(worker, epoch)


def serve(deployment: Deployment, _worker: Worker, group: RankGroup) -> None:
    load(group)
    heartbeat.loaded()
    while True:
        orders = group.wait_for_orders(2 * deployment.parallel.hang_timeout_s, lambda: None)
        for what in orders.abort:
            compute(what, group)
        if orders.stop:
            print("a follower stops in good order", file=sys.stderr)
            return
