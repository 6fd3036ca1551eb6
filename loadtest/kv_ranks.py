"""Engine groups that do nothing but hand KV over: a process per rank, pipes in place of MPI. For benchmarks and tests.

The process that starts a group plays its engine: it orders pulls, carries followers' reports to the leader, and takes
results. Bytes are labelled: each word of a block tells of which block, KV head, layer and place it is.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.kv.blocks import BlockPool
from tandem.kv.copying import VARIABLE, add_copying
from tandem.kv.handle import HANDLE_VERSION, digest_tokens
from tandem.kv.leases import LeaseTable
from tandem.kv.memory import HostMemory
from tandem.kv.pull import PullResult
from tandem.kv.reader import KvReader
from tandem.kv.reshard import block_bytes_of
from tandem.kv.transfer import KvTransfer
from tandem.messages import (
    HeldBlocks,
    KvFormat,
    KvHandle,
    Partition,
    PullOrder,
    ReadEnded,
    StageName,
    TransferInfo,
    WorkerInfo,
)
from tandem.parallel.partition import kv_heads_of, layers_of

DEADLINE_S = 60.0
"""Only something broken waits this long."""
REPORT_POLL_S = 100e-6

ONE_RANK = Partition()
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is made from."""

    worker_id: str
    stage: StageName
    kv: KvFormat
    partition: Partition = ONE_RANK
    epoch: int = 1
    blocks: int = 64
    lease_s: float = 60.0
    timeout_s: float = 10.0
    mapped: bool = True
    """Whether other processes of this host may map the memory; else NIXL moves the bytes, as between hosts."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables of the ranks' processes."""


@dataclass(frozen=True)
class Outcome:
    """How a pull ended, as it can be sent through a pipe; ``code`` is None if well."""

    request_id: str
    code: str | None
    message: str
    bytes_moved: int
    seconds: float


def content(spec: WorkerSpec, rank: int, seeds: Sequence[int]) -> Bytes:
    """What blocks named ``seeds`` hold on a rank: [blocks, block_bytes]; no word is 0 or occurs twice."""
    kv, words = spec.kv, spec.kv.slice_bytes // 8
    heads = np.array(kv_heads_of(spec.partition, rank, kv.num_kv_heads), dtype=np.uint64)
    layers = np.array(layers_of(spec.partition, rank, kv.num_layers), dtype=np.uint64)
    labels = np.array(seeds, dtype=np.uint64)[:, None, None] * np.uint64(kv.num_kv_heads) + heads[:, None]
    labels = labels * np.uint64(kv.num_layers) + layers
    values = labels[..., None] * np.uint64(words) + np.arange(1, words + 1, dtype=np.uint64)
    return values.reshape(len(seeds), -1).view(np.uint8)


LOOPBACK = ("UCX_NET_DEVICES", "lo")
"""A setting for every process that has a rank: else UCX binds to any interface, and hangs when that one goes."""


class Rank:
    """One rank in this process: memory and transfer; on the leader, pool and leases too."""

    def __init__(self, spec: WorkerSpec, rank: int, on_result: Callable[[Outcome], None]) -> None:
        self.spec, self.rank, self._on_result = spec, rank, on_result
        block_bytes = block_bytes_of(spec.partition, rank, spec.kv)
        self._host = HostMemory(spec.blocks * block_bytes)
        self.memory = self._host.array.reshape(spec.blocks, block_bytes)
        self.pool = BlockPool(spec.blocks)
        self.leases = LeaseTable(self.pool, spec.lease_s, words=self._host.lease_words)
        place: Any = {
            "agent_name": f"{spec.worker_id}.{spec.epoch:x}.{rank}",
            "address": self.memory.ctypes.data,
            "shared": self._host.place if spec.mapped else None,
            "block_bytes": block_bytes,
            "num_blocks": spec.blocks,
            "memory": "DRAM",
            "device_id": 0,
            "timeout_s": spec.timeout_s,
            "kv": spec.kv,
            "partition": spec.partition,
        }
        self.transfer: Any = KvReader(rank=rank, **place) if rank else KvTransfer(leases=self.leases, **place)
        self.transfer.start()

    def info(self) -> TransferInfo:
        info: TransferInfo = self.transfer.info
        return info

    def pair(self, peer: WorkerInfo) -> None:
        self.transfer.pair(peer)

    def allocate_blocks(self, count: int) -> list[int]:
        return self.pool.allocate(count)

    def free(self, block_ids: list[int]) -> None:
        self.pool.free(block_ids)

    def fill(self, block_ids: list[int], seeds: list[int]) -> None:
        """Write the content named ``seeds``."""
        self.memory[block_ids] = content(self.spec, self.rank, seeds)

    def grant(self, request_id: str, block_ids: list[int]) -> KvHandle:
        """Put blocks under lease (leader)."""
        tokens = list(range(len(block_ids) * self.spec.kv.block_size))
        return KvHandle(
            version=HANDLE_VERSION,
            worker_id=self.spec.worker_id,
            epoch=self.spec.epoch,
            lease_id=self.leases.grant(request_id, block_ids),
            kv=self.spec.kv,
            partition=self.spec.partition,
            num_tokens=len(tokens),
            tokens_digest=digest_tokens(tokens),
            held=HeldBlocks(block_ids=block_ids),
        )

    def pull(self, order: PullOrder) -> None:
        """Begin with this rank's part of a pull."""
        if self.rank:
            self.transfer.read(order)
            return

        def tell(result: PullResult) -> None:
            code, message = (result.error.code, result.error.message) if result.error else (None, "")
            self._on_result(Outcome(result.request_id, code, message, result.bytes_moved, result.seconds))

        self.transfer.pull(order.request_id, order.handle, order.block_ids, tell)

    def part_ended(self, report: ReadEnded) -> None:
        self.transfer.part_ended(report)

    def abort(self, request_id: str) -> None:
        self.transfer.abort(request_id)

    def serve(self, held: bool) -> None:
        self.transfer.serve(held)

    def reports(self) -> list[ReadEnded]:
        """New reports of reads that ended (follower)."""
        return self.transfer.ended() if self.rank else []

    def wrong_blocks(self, block_ids: list[int], seeds: list[int]) -> list[int]:
        """Which of the blocks do not hold just the content named ``seeds``."""
        equal = (self.memory[block_ids] == content(self.spec, self.rank, seeds)).all(axis=1)
        return [block for block, good in zip(block_ids, equal, strict=True) if not good]

    def written_blocks(self) -> list[int]:
        """All blocks that hold anything but zeros."""
        return [int(block) for block in np.flatnonzero(self.memory.any(axis=1))]

    def erase(self, blocks: int) -> None:
        """Zero the first so many blocks."""
        self.memory[:blocks] = 0

    def state(self) -> tuple[int, int, int, int]:
        """Blocks used, leases held, granted and expired (leader)."""
        return self.pool.used, self.leases.held, self.leases.granted, self.leases.expired

    def stop(self) -> None:
        self.transfer.stop()


def _serve(calls: Connection, news: Connection, spec: WorkerSpec, rank: int) -> None:
    """The child: does what it is told until the pipe ends; results and reports go out as they come."""
    logging.basicConfig(level=logging.INFO)
    os.environ.setdefault(*LOOPBACK)
    os.environ.update(spec.environment)
    one = Rank(spec, rank, news.send)
    calls.send(one.info())
    reading = 0
    try:
        while True:
            if calls.poll(REPORT_POLL_S if reading else None):
                method, arguments = calls.recv()
                reading += method == "pull" and rank > 0
                calls.send(getattr(one, method)(*arguments))
            for report in one.reports():
                reading -= not report.still_writing
                news.send(report)
    except (EOFError, BrokenPipeError):
        return


@contextlib.contextmanager
def _engine_environment() -> Iterator[None]:
    """The environment of engine processes; the server that forks ranks is started in it."""
    before = os.environ.copy()
    os.environ.update(add_copying(before))
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update(before)


class RankProcess:
    """A ``Rank`` in a process of its own, which can be frozen and killed. Any method of ``Rank`` can be called."""

    def __init__(self, spec: WorkerSpec, rank: int = 0) -> None:
        """Starts; ``finish`` gives its TransferInfo."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["nixl_cu13._api", "tandem.kv.reader", "tandem.kv.transfer"])
        self.rank = rank
        self._calls, calls = context.Pipe()
        self.news, news = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(calls, news, spec, rank), daemon=True)
        with _engine_environment():
            self.process.start()
        calls.close()
        news.close()

    def begin(self, method: str, *arguments: object) -> None:
        """Call without waiting for the answer, which ``finish`` gives."""
        self._calls.send((method, arguments))

    def finish(self) -> Any:
        if not self._calls.poll(DEADLINE_S):
            raise TimeoutError(f"rank {self.rank} does not answer")
        return self._calls.recv()

    def call(self, method: str, *arguments: object) -> Any:
        self.begin(method, *arguments)
        return self.finish()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def freeze(self) -> None:
        """Stop it; on return all its threads stand still."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any("State:\tT" not in (task / "status").read_text() for task in tasks.iterdir()):
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)


class Group:
    """A worker of several ranks, each a process; also one of a single rank."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Starts; ``wait_ready`` before anything else, so that several groups can start at once."""
        self.spec = spec
        self.ranks = [RankProcess(spec, rank) for rank in range(spec.partition.size)]
        self.leader, self.followers = self.ranks[0], self.ranks[1:]
        self.ended: list[ReadEnded] = []
        """Reports that were carried to the leader."""

    def wait_ready(self) -> None:
        self.info = make_info(self.spec, [rank.finish() for rank in self.ranks])

    def pair(self, peer: WorkerInfo) -> None:
        self.all("pair", peer)

    def all(self, method: str, *arguments: object) -> list[Any]:
        """Call all ranks at once; their answers."""
        for rank in self.ranks:
            rank.begin(method, *arguments)
        return [rank.finish() for rank in self.ranks]

    def grant(self, request_id: str, seeds: Sequence[int]) -> KvHandle:
        """Blocks that hold the content named ``seeds``, under lease."""
        block_ids: list[int] = self.leader.call("allocate_blocks", len(seeds))
        self.all("fill", block_ids, list(seeds))
        for follower in self.followers:
            follower.call("serve", True)
        handle: KvHandle = self.leader.call("grant", request_id, block_ids)
        return handle

    def begin_pull(self, request_id: str, handle: KvHandle) -> list[int]:
        """Start a pull to fresh blocks; they stay allocated."""
        block_ids: list[int] = self.leader.call("allocate_blocks", len(handle.block_ids))
        self.all("pull", PullOrder(request_id=request_id, handle=handle, block_ids=block_ids))
        return block_ids

    def abort(self, request_id: str) -> None:
        self.all("abort", request_id)

    def result(self) -> Outcome:
        """The next pull that ends; carries reports meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for news in self.carry(deadline - time.monotonic()):
                return news
        raise TimeoutError("no pull ends")

    def carry(self, timeout_s: float) -> list[Outcome]:
        """Wait for news of any rank; carry reports to the leader, and return results."""
        outcomes: list[Outcome] = []
        alive = [rank for rank in self.ranks if rank.process.is_alive()]
        ready = wait([rank.news for rank in alive], timeout_s)
        for rank in alive:
            if rank.news not in ready:
                continue
            try:
                news = rank.news.recv()
            except EOFError:
                continue  # it was killed
            if isinstance(news, ReadEnded):
                self.ended.append(news)
                self.leader.call("part_ended", news)
            else:
                outcomes.append(news)
        return outcomes

    def state(self) -> tuple[int, int, int, int]:
        """Blocks used, leases held, granted and expired."""
        state: tuple[int, int, int, int] = self.leader.call("state")
        return state

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()


def make_info(spec: WorkerSpec, transfers: list[TransferInfo]) -> WorkerInfo:
    """The worker as others are to know it."""
    return WorkerInfo(
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        stage=spec.stage,
        engine="none",
        kv=spec.kv,
        partition=spec.partition,
        vocab_size=100,
        max_model_len=4096,
        max_batch_size=8,
        transfers=transfers,
    )


def start_pair(prefill: WorkerSpec, decode: WorkerSpec) -> tuple[Group, Group]:
    """Two groups that know one another."""
    groups = Group(prefill), Group(decode)
    for group in groups:
        group.wait_ready()
    groups[0].pair(groups[1].info)
    groups[1].pair(groups[0].info)
    return groups
