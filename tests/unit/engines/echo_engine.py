"""Small real engines for tests of the engine process: one that echoes prompts, and some that misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from tandem.deployment import Deployment, Worker
from tandem.engines.base import EventSink, LoadingSink
from tandem.errors import TandemError
from tandem.messages import AnyWork, BlocksStored, Finished, KvFormat, Load, Tokens, WorkerInfo


class EchoEngine:
    """Answers each request with its own prompt, at once, and stores a block for each token of it. Some request ids have
    it misbehave."""

    def __init__(self, worker: Worker, epoch: int) -> None:
        self._info = WorkerInfo(
            worker_id=worker.name,
            epoch=epoch,
            stage=worker.stage,
            engine="echo",
            kv=KvFormat(
                fingerprint="f", dtype="d", layout="l", block_size=1, num_layers=1, num_kv_heads=1, slice_bytes=8
            ),
            vocab_size=10,
            max_model_len=10,
            max_batch_size=1,
        )
        self._steps = 0

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def start(self, sink: EventSink) -> None:
        self._sink = sink

    def submit(self, work: list[AnyWork]) -> None:
        for one in work:
            if one.request_id == "raise":
                raise RuntimeError("the engine broke")
            if one.request_id == "thread":
                threading.Thread(target=lambda: 1 // 0, name="step").start()
                continue
            self._steps += 1
            tokens = Tokens(request_id=one.request_id, index=len(one.output_ids), token_ids=one.token_ids)
            finished = Finished(request_id=one.request_id, reason="stop")
            self._sink([tokens, finished], Load(steps=self._steps), [BlocksStored(hashes=one.token_ids)])

    def cancel(self, request_ids: list[str]) -> None:
        load = Load(steps=self._steps, handles_expired=len(request_ids))
        self._sink([Finished(request_id=r, reason="cancelled") for r in request_ids], load)

    def pair(self, peer: WorkerInfo) -> None:
        raise TandemError("worker_incompatible", f"{peer.worker_id} does not fit")

    def unpair(self, worker_id: str) -> None:
        """There never was one."""

    def stop(self) -> None:
        print("the echo engine stops in good order", file=sys.stderr)


class StubbornEngine(EchoEngine):
    """Never stops by itself, and has a child that does not either; tells the child's id as its only token."""

    def start(self, sink: EventSink) -> None:
        super().start(sink)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        sink([Tokens(request_id="child", index=0, token_ids=[child.pid])], Load())

    def stop(self) -> None:
        while True:
            time.sleep(1)


def create(_deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> EchoEngine:
    loading("weights", 0.5)
    print(f"loading {worker.name}", file=sys.stderr)
    return EchoEngine(worker, epoch)


def create_stubborn(_deployment: Deployment, worker: Worker, epoch: int, _loading: LoadingSink) -> StubbornEngine:
    return StubbornEngine(worker, epoch)


def create_slowly(_deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> EchoEngine:
    loading("weights", 0.25)
    time.sleep(6)
    return EchoEngine(worker, epoch)


def create_by_and_by(_deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> EchoEngine:
    for tenth in range(10):
        loading("weights", tenth / 10)
        time.sleep(0.6)
    return EchoEngine(worker, epoch)


def create_never(deployment: Deployment, _worker: Worker, _epoch: int, _loading: LoadingSink) -> EchoEngine:
    raise TandemError(
        "invalid_request", f"model.path: {deployment.model.path} has no config.json; run build/convert.py"
    )


def create_broken(_deployment: Deployment, _worker: Worker, _epoch: int, _loading: LoadingSink) -> EchoEngine:
    raise ZeroDivisionError("a defect")


def create_crashing(_deployment: Deployment, _worker: Worker, _epoch: int, _loading: LoadingSink) -> EchoEngine:
    print("about to crash", file=sys.stderr, flush=True)
    os.abort()
