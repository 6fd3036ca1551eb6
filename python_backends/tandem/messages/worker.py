"""Who a worker is."""

from __future__ import annotations

from typing import Literal

from tandem.messages.base import PROTOCOL_VERSION, Message, Role

Feature = Literal["lora", "guided_decoding"]
"""What some engines can do and others cannot; ``tandem.engines.torch.checks`` names the fields that ask for it."""


class SharedMemory(Message, frozen=True, kw_only=True):
    """Where processes of the same host find memory that they can map; see ``tandem.kv.memory``."""

    pid: int
    file: int
    """Its descriptor in that process."""
    num_bytes: int
    token: bytes
    """What stands behind the last byte."""


class TransferInfo(Message, frozen=True, kw_only=True):
    """Where one rank's KV memory lies and how NIXL reaches it. Block i starts at ``address + i * block_bytes``."""

    agent_name: str
    agent_metadata: bytes
    address: int
    block_bytes: int
    num_blocks: int
    memory: Literal["DRAM", "VRAM"] = "DRAM"
    device_id: int = 0
    shared: SharedMemory | None = None
    """The same memory for processes of this host."""


class LibraryTransfer(Message, frozen=True, kw_only=True):
    """An engine whose library moves KV itself, and shows neither blocks nor memory. Both ends must have it the same."""

    library: str
    """Name and version."""
    backend: str
    """What the library moves KV with."""
    claims: str = ""
    """Where a prefill worker is asked whether a lease still holds: a ZeroMQ address."""


class Partition(Message, frozen=True, kw_only=True):
    """How an engine group splits a model over its ranks; see ``tandem.parallel.partition``."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class WorkerInfo(Message, frozen=True, kw_only=True):
    """All that others must know of a worker. Workers fit together when their ``KvFormat`` is equal."""

    protocol_version: int = PROTOCOL_VERSION
    worker_id: str
    """Unique among all workers that can meet; stays the same as long as its Triton server runs."""
    epoch: int
    """New at every start of the engine process; nothing of an older epoch is ever accepted."""
    stage: Role
    engine: str
    kv: KvFormat
    partition: Partition = Partition()
    """Workers whose partitions differ fit together all the same: KV is cut anew on its way."""
    vocab_size: int
    max_model_len: int
    """Most tokens of prompt and answer together."""
    max_batch_size: int
    transfers: list[TransferInfo] = []
    """One for each rank, in their order; a block of the worker is the blocks of that number of all ranks."""
    library: LibraryTransfer | None = None
    """In place of ``transfers``."""
    features: list[Feature] = []


class KvFormat(Message, frozen=True, kw_only=True):
    """What must be equal on both sides of a hand-over for KV bytes to mean the same."""

    fingerprint: str
    """Hash over the model's configuration and weights."""
    dtype: str
    layout: str
    """Order of what a block holds, and of the numbers in a key."""
    block_size: int
    num_layers: int
    num_kv_heads: int
    slice_bytes: int
    """Bytes of one KV head of one layer in a block; a rank's block holds its heads and, within each, its layers."""
