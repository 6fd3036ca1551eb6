"""One side of a hand-over with real NIXL: in this process, or in one of its own that can be frozen and killed."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import queue
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.kv.blocks import BlockPool
from tandem.kv.handle import HANDLE_VERSION, digest_tokens
from tandem.kv.leases import LeaseTable
from tandem.kv.pull import PullResult
from tandem.kv.transfer import KvTransfer
from tandem.messages import KvFormat, KvHandle, StageName, WorkerInfo

BLOCK_BYTES = 64 * 1024
KV = KvFormat(fingerprint="f", dtype="float32", layout="block-major-v1", block_size=4)
DEADLINE_S = 30.0
"""Only a broken transfer waits this long; no test asserts on time."""


def content(seed: int) -> npt.NDArray[np.uint8]:
    """The bytes of one block."""
    return np.random.default_rng(seed).integers(0, 256, BLOCK_BYTES, dtype=np.uint8)


class Side:
    """Memory, pool, leases and transfer of one worker."""

    def __init__(
        self, worker_id: str, epoch: int, stage: StageName, blocks: int, lease_s: float, timeout_s: float
    ) -> None:
        self._map = mmap.mmap(-1, blocks * BLOCK_BYTES)
        self.memory = np.frombuffer(self._map, dtype=np.uint8).reshape(blocks, BLOCK_BYTES)
        self.pool = BlockPool(blocks)
        self.leases = LeaseTable(self.pool, lease_s)
        self.transfer = KvTransfer(
            f"{worker_id}.{epoch:x}",
            self.memory.ctypes.data,
            BLOCK_BYTES,
            blocks,
            "DRAM",
            0,
            self.leases,
            timeout_s,
        )
        self.transfer.start()
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=epoch,
            stage=stage,
            engine="none",
            kv=KV,
            vocab_size=100,
            max_model_len=4096,
            max_batch_size=8,
            transfer=self.transfer.info,
        )
        self._results: queue.Queue[PullResult] = queue.Queue()

    def grant(self, request_id: str, seeds: Sequence[int]) -> KvHandle:
        """Blocks filled from ``seeds``, under lease."""
        ids = self.pool.allocate(len(seeds))
        for block, seed in zip(ids, seeds, strict=True):
            self.memory[block] = content(seed)
        tokens = list(range(len(seeds) * KV.block_size))
        return KvHandle(
            version=HANDLE_VERSION,
            worker_id=self.info.worker_id,
            epoch=self.info.epoch,
            lease_id=self.leases.grant(request_id, ids),
            kv=KV,
            num_tokens=len(tokens),
            tokens_digest=digest_tokens(tokens),
            block_ids=ids,
        )

    def begin_pull(self, request_id: str, handle: KvHandle) -> list[int]:
        """Start a pull to fresh blocks; they keep their number until given back."""
        ids = self.pool.allocate(len(handle.block_ids))
        self.transfer.pull(request_id, handle, ids, self._results.put)
        return ids

    def result(self) -> PullResult:
        """The next pull that ends."""
        return self._results.get(timeout=DEADLINE_S)

    def nothing_more(self) -> bool:
        """Whether no result is left over."""
        return self._results.empty()

    def equals(self, block: int, seed: int) -> bool:
        """Whether a block holds just the bytes of ``seed``."""
        return bool((self.memory[block] == content(seed)).all())

    def state(self) -> tuple[int, int, int, int]:
        """Blocks used, leases held, granted and expired."""
        return self.pool.used, self.leases.held, self.leases.granted, self.leases.expired

    def stop(self) -> None:
        self.transfer.stop()


def _serve(connection: Connection, arguments: tuple[Any, ...]) -> None:
    """The child: does what it is told until the pipe ends."""
    logging.basicConfig(level=logging.INFO)
    side = Side(*arguments)
    connection.send(side.info)
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        connection.send(side.transfer.pair(*args) if method == "pair" else getattr(side, method)(*args))


class Elsewhere:
    """A ``Side`` in a process of its own."""

    def __init__(
        self,
        worker_id: str = "prefill_0",
        epoch: int = 1,
        stage: StageName = "prefill",
        blocks: int = 64,
        lease_s: float = 60.0,
        timeout_s: float = 10.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update(environment or {})
        try:
            self.process = context.Process(
                target=_serve, args=(theirs, (worker_id, epoch, stage, blocks, lease_s, timeout_s)), daemon=True
            )
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()
        self.info: WorkerInfo = self._receive()

    def pair(self, peer: WorkerInfo) -> None:
        self._call("pair", peer)

    def grant(self, request_id: str, seeds: Sequence[int]) -> KvHandle:
        handle: KvHandle = self._call("grant", request_id, list(seeds))
        return handle

    def state(self) -> tuple[int, int, int, int]:
        state: tuple[int, int, int, int] = self._call("state")
        return state

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def freeze(self) -> None:
        """Stop it; on return it does stand still."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def _call(self, method: str, *arguments: object) -> Any:
        self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        if not self._connection.poll(DEADLINE_S):
            raise TimeoutError("the other side does not answer")
        return self._connection.recv()
