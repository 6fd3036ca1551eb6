"""Two workers' memory, clocks and transport, simulated: whoever drives it decides when a byte or a message arrives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tandem.errors import TandemError
from tandem.kv.agent import Read, Remote
from tandem.kv.handle import HANDLE_VERSION
from tandem.kv.leases import LeaseTable
from tandem.kv.memory import Words
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.pull import PullResult
from tandem.kv.reshard import Run
from tandem.kv.transfer import KvTransfer
from tandem.messages import (
    HeldBlocks,
    KvFormat,
    KvHandle,
    Partition,
    StageName,
    TransferInfo,
    TransferNote,
    WorkerInfo,
)

BLOCK_BYTES = 64
KV = KvFormat(
    fingerprint="f", dtype="d", layout="l", block_size=1, num_layers=1, num_kv_heads=1, slice_bytes=BLOCK_BYTES
)
LEASE_S, TIMEOUT_S = 3.0, 2.0
LEASE_WORDS = 2
"""So few that leases are in each other's places."""


@dataclass(eq=False)
class BlocksOnTheirWay:
    """A read: which blocks have not arrived yet. Of a block that arrives it is what the source holds at that moment."""

    source: str
    target: Process
    left: list[tuple[int, int]]
    note: TransferNote | None


@dataclass
class Envelope:
    sender: str
    receiver: str
    note: TransferNote


@dataclass
class Network:
    """What is on its way between processes. One that has ended is no longer in ``processes``."""

    processes: dict[str, Process] = field(default_factory=dict)
    """By agent name, so by worker and epoch."""
    reads: list[BlocksOnTheirWay] = field(default_factory=list)
    mail: list[Envelope] = field(default_factory=list)
    words: dict[str, Words] | None = None
    """On one host: where the leases of each process are seen, also after its end. None: between hosts."""

    def move(self, read: BlocksOnTheirWay, place: int) -> None:
        """One block of a read arrives; neither process takes part in it, so both may stand still."""
        ours, theirs = read.left.pop(place)
        read.target.memory[ours] = self.processes[read.source].memory[theirs]
        if not read.left and read.note is not None:
            self.mail.append(Envelope(read.target.name, read.source, read.note))

    def deliver(self, envelope: Envelope) -> None:
        """A message arrives, once more if it was delivered before."""
        if (process := self.processes.get(envelope.receiver)) is not None:
            process.inbox.append((envelope.sender, envelope.note))

    def moving(self) -> list[BlocksOnTheirWay]:
        """Reads of which something may arrive."""
        self.reads = [read for read in self.reads if read.target.name in self.processes and read.left]
        return [read for read in self.reads if read.source in self.processes]


class SimulatedAgent:
    """What ``Agent`` is to a transfer, for one process."""

    def __init__(self, network: Network, process: Process, num_blocks: int) -> None:
        self._network, self._process = network, process
        self.info = TransferInfo(
            agent_name=process.name, agent_metadata=b"", address=0, block_bytes=BLOCK_BYTES, num_blocks=num_blocks
        )

    def connect(self, info: TransferInfo, runs: tuple[Run, ...] = ()) -> Remote:
        words = None if self._network.words is None else self._network.words[info.agent_name]
        return Remote(info, runs, None, lease_words=words)

    def disconnect(self, remote: Remote) -> None:
        remote.lost = True

    def read(
        self, remote: Remote, local_ids: Sequence[int], remote_ids: Sequence[int], note: TransferNote | None = None
    ) -> Read:
        self._require_alive(remote)
        read = BlocksOnTheirWay(remote.name, self._process, list(zip(local_ids, remote_ids, strict=True)), note)
        self._network.reads.append(read)
        return Read(remote, read)

    def has_ended(self, read: Read) -> bool:
        if not read.handle.left:
            return True
        self._require_alive(read.remote)
        return False

    def send(self, remote: Remote, note: TransferNote) -> None:
        self._require_alive(remote)
        self._network.mail.append(Envelope(self._process.name, remote.name, note))

    def receive(self) -> list[tuple[str, TransferNote]]:
        mail, self._process.inbox = self._process.inbox, []
        return mail

    def close(self) -> None:
        pass

    def _require_alive(self, remote: Remote) -> None:
        if remote.name not in self._network.processes:
            remote.lost = True
            raise TandemError("transfer_failed", f"{remote.name} is gone")


class Process:
    """One epoch of a worker: the real pool, leases and transfer, on memory whose blocks hold a word each."""

    _epochs = itertools.count(1)

    def __init__(self, network: Network, stage: StageName, num_blocks: int, pool: PrefixCache | None = None) -> None:
        self.epoch = next(self._epochs)
        self.name = f"{stage}_0.{self.epoch:x}"
        self.now = 0.0
        self.stopped = False
        """It takes no turns (SIGSTOP)."""
        self.frozen = False
        """Nor does its clock run (a virtual machine that was put aside)."""
        self.memory = ["nothing"] * num_blocks
        self.inbox: list[tuple[str, TransferNote]] = []
        self.pool = pool or PrefixCache(num_blocks)
        words = np.zeros(LEASE_WORDS, np.uint64)
        if network.words is not None:
            network.words[self.name] = words
        self.leases = LeaseTable(self.pool, LEASE_S, self.clock, words)

        def make_agent(*_: Any) -> Any:
            return SimulatedAgent(network, self, num_blocks)

        self.transfer = KvTransfer(
            leases=self.leases,
            clock=self.clock,
            make_agent=make_agent,
            agent_name=self.name,
            address=0,
            shared=None,
            block_bytes=BLOCK_BYTES,
            num_blocks=num_blocks,
            memory="DRAM",
            device_id=0,
            timeout_s=TIMEOUT_S,
            kv=KV,
            partition=Partition(),
        )
        self.transfer.open()
        network.processes[self.name] = self
        self.info = WorkerInfo(
            worker_id=f"{stage}_0",
            epoch=self.epoch,
            stage=stage,
            engine="none",
            kv=KV,
            vocab_size=1,
            max_model_len=1,
            max_batch_size=1,
            transfers=[self.transfer.info],
        )

    def clock(self) -> float:
        return self.now

    def write(self, count: int, word: str) -> list[int]:
        """Fill that many new blocks."""
        blocks = self.pool.allocate(count)
        for block in blocks:
            self.memory[block] = word
        return blocks

    def grant(self, request_id: str, blocks: list[int]) -> KvHandle:
        """Put blocks under lease."""
        return KvHandle(
            version=HANDLE_VERSION,
            worker_id=self.info.worker_id,
            epoch=self.epoch,
            lease_id=self.leases.grant(request_id, blocks),
            kv=KV,
            partition=Partition(),
            num_tokens=len(blocks),
            tokens_digest=b"",
            held=HeldBlocks(block_ids=blocks),
        )

    def pull(self, request_id: str, handle: KvHandle, on_done: Callable[[PullResult], None]) -> list[int]:
        """Begin a pull to new blocks."""
        blocks = self.pool.allocate(len(handle.block_ids))
        self.transfer.pull(request_id, handle, blocks, on_done)
        return blocks
