"""``[[worker]]``: one engine and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tandem.deployment.base import Address, ByteSize, Device, Host, PositiveInt, Section, WorkerName, to_bytes
from tandem.deployment.engines import Faults, TensorRtLlm
from tandem.messages import Partition, Role


class Worker(Section, frozen=True, kw_only=True):
    """One engine behind one Triton stage model of the same name; with an ``address``, one behind each that it has."""

    name: WorkerName
    stage: Role
    address: Address | list[Address] = []
    """Of the gRPC port of the Triton that serves it, as others reach it: host:port, or several. A name may stand for
    many hosts, each of which is a worker, and for others later on. Empty: the Triton of the gateway."""
    engine: Literal["torch", "sim", "tensorrt_llm"] = "torch"
    profile: str | None = None
    """Of the engine ``sim``: how fast it is; see ``tandem.engines.sim.profiles``."""
    timing: dict[str, float] = {}
    """Of the engine ``sim``: fields of ``tandem.engines.sim.timing.Timing`` that replace the profile's."""
    faults: Faults = Faults()
    tensorrt_llm: TensorRtLlm | None = None
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    hosts: list[Host] = []
    """Where the ranks run, in equal runs of consecutive ranks; the first is the one whose Triton serves the worker.
    Empty: all on that one."""
    devices: Annotated[list[Device], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["cpu"])
    """One for all ranks, or one for each."""
    threads: PositiveInt | None = None
    """CPU threads of each rank; when left out, a machine's cores are shared out evenly among the ranks there."""
    max_batch_size: PositiveInt = 32
    """Sequences in one decode step."""
    max_batch_tokens: PositiveInt = 2048
    """Prompt tokens in one prefill step; a longer prompt takes several."""
    kv_memory: ByteSize = "1GiB"
    """Of each rank. With the engine ``sim`` this is the memory that it pretends to have."""
    kv_host: ByteSize | None = None
    """Of a CUDA worker: memory of the host for KV blocks that have no room in ``kv_memory``."""
    kv_disk: ByteSize | None = None
    """Disk for such blocks; below ``kv_host``, where there is both."""
    kv_disk_path: str | None = None
    """Directory for them, relative to the deployment file; each worker makes its own in it."""
    max_queue: PositiveInt = 256
    """Requests that wait in this worker; one more is refused at once."""

    @property
    def addresses(self) -> list[str]:
        """``address`` as a list."""
        return [self.address] if isinstance(self.address, str) else self.address

    @property
    def kv_bytes(self) -> int:
        """``kv_memory`` in bytes."""
        return to_bytes(self.kv_memory)

    @property
    def kv_host_bytes(self) -> int:
        """``kv_host`` in bytes, 0 for none."""
        return to_bytes(self.kv_host) if self.kv_host else 0

    @property
    def kv_disk_bytes(self) -> int:
        """``kv_disk`` in bytes, 0 for none."""
        return to_bytes(self.kv_disk) if self.kv_disk else 0

    @property
    def partition(self) -> Partition:
        """How the model is split over the ranks."""
        return Partition(
            tensor_parallel_size=self.tensor_parallel_size, pipeline_parallel_size=self.pipeline_parallel_size
        )

    @property
    def group_size(self) -> int:
        """Number of ranks."""
        return self.partition.size

    def device_of(self, rank: int) -> str:
        """The device of one rank."""
        return self.devices[rank if len(self.devices) > 1 else 0]

    def host_of(self, rank: int) -> str | None:
        """The host of one rank; None is the one whose Triton serves the worker."""
        place = rank * len(self.hosts) // self.group_size
        return self.hosts[place] if place else None
