"""What the ranks of an engine group compute together: sums within a pipeline stage, hand-overs from stage to stage, and
the last stage's results, collected by the leader. All ranks call the same in the same order; calls wait for the others,
and the supervisor ends a group in which one does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.parallel import heartbeat
from tandem.parallel.partition import pipeline_rank

if TYPE_CHECKING:
    from mpi4py import MPI

    from tandem.parallel.group import RankGroup

Bytes = npt.NDArray[np.uint8]
RENDEZVOUS_TIMEOUT_S = 60.0


class Collectives(Protocol):
    """See the module."""

    seconds: float
    """Spent in here so far, waiting for others included."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the ``x`` of all ranks of this pipeline stage, each of the same shape; may change ``x``."""
        ...

    def send_on(self, x: Tensor) -> None:
        """Hand ``x`` to the rank of the same place in the next stage."""
        ...

    def receive(self, x: Tensor) -> Tensor:
        """Fill ``x`` with what the previous stage hands on, and return it."""
        ...

    def collect(self, part: Bytes, sizes: list[int]) -> list[Bytes]:
        """On the leader, the parts of the last stage's ranks in order, of ``sizes`` bytes; on all others nothing.

        Ranks of other stages give an empty ``part``.
        """
        ...


class Alone:
    """``Collectives`` of a group of one."""

    seconds = 0.0

    def sum(self, x: Tensor) -> Tensor:
        """As in ``Collectives``."""
        return x

    def send_on(self, x: Tensor) -> None:
        """As in ``Collectives``; there is no next stage."""

    def receive(self, x: Tensor) -> Tensor:
        """As in ``Collectives``; there is no previous stage."""
        return x

    def collect(self, part: Bytes, sizes: list[int]) -> list[Bytes]:
        """As in ``Collectives``."""
        del sizes
        return [part]


class MpiCollectives:
    """``Collectives`` over MPI, on tensors in the host's memory. MPI knows no bfloat16: sums are formed in float32."""

    def __init__(self, group: RankGroup) -> None:
        """All ranks of ``group``, which has more than one, make theirs at the same time."""
        assert group.comm is not None
        self.seconds = 0.0
        partition = group.partition
        self._width = partition.tensor_parallel_size
        self._rank, self._size = group.rank, group.size
        self._all: MPI.Intracomm = group.comm.Dup()
        self._stage: MPI.Comm = group.comm.Split(pipeline_rank(partition, group.rank), group.rank)

    def sum(self, x: Tensor) -> Tensor:
        """As in ``Collectives``."""
        if self._width == 1:
            return x
        from mpi4py import MPI

        total = x.float().contiguous()
        self._timed(lambda: self._stage.Allreduce(MPI.IN_PLACE, total.numpy()))
        return total.to(x.dtype)

    def send_on(self, x: Tensor) -> None:
        """As in ``Collectives``."""
        data = x.contiguous().view(torch.uint8).numpy()
        self._timed(lambda: self._all.Send(data, self._rank + self._width))

    def receive(self, x: Tensor) -> Tensor:
        """As in ``Collectives``."""
        data = x.view(torch.uint8).numpy()
        self._timed(lambda: self._all.Recv(data, self._rank - self._width))
        return x

    def collect(self, part: Bytes, sizes: list[int]) -> list[Bytes]:
        """As in ``Collectives``."""
        if self._rank:
            self._timed(lambda: self._all.Gatherv(part, None, 0))
            return []
        counts = [0] * (self._size - self._width) + sizes
        data = np.empty(sum(sizes), np.uint8)
        self._timed(lambda: self._all.Gatherv(part, (data, counts), 0))
        return np.split(data, np.cumsum(sizes)[:-1])

    def _timed(self, call: Callable[[], None]) -> None:
        began = time.perf_counter()
        call()
        self.seconds += time.perf_counter() - began
        heartbeat.advance()


class DeviceCollectives(MpiCollectives):
    """``Collectives`` over torch.distributed where tensors stay on their device: ``nccl`` on CUDA. What the leader
    collects is small and in the host's memory, and goes over MPI."""

    def __init__(self, group: RankGroup, backend: str, leader_address: str) -> None:
        """All ranks of ``group`` make theirs at the same time; ``leader_address`` is where rank 0 can be reached."""
        super().__init__(group)
        from torch import distributed

        self._distributed = distributed
        timeout = timedelta(seconds=RENDEZVOUS_TIMEOUT_S)
        make_store: Any = distributed.TCPStore  # type: ignore[attr-defined]  # its module does not declare it
        if group.is_leader:
            store = make_store(leader_address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
            group.share(store.port)
        else:
            store = make_store(leader_address, group.share(0), is_master=False, timeout=timeout)
        distributed.init_process_group(backend, store=store, rank=group.rank, world_size=group.size)
        stages = [list(range(first, first + self._width)) for first in range(0, group.size, self._width)]
        groups = [distributed.new_group(ranks) for ranks in stages]
        self._stage_group = groups[pipeline_rank(group.partition, group.rank)]

    def sum(self, x: Tensor) -> Tensor:
        """As in ``Collectives``."""
        if self._width > 1:
            self._timed(lambda: self._distributed.all_reduce(x, group=self._stage_group))
        return x

    def send_on(self, x: Tensor) -> None:
        """As in ``Collectives``."""
        self._timed(lambda: self._distributed.send(x.contiguous(), self._rank + self._width))

    def receive(self, x: Tensor) -> Tensor:
        """As in ``Collectives``."""
        self._timed(lambda: self._distributed.recv(x, self._rank - self._width))
        return x


def choose_collectives(group: RankGroup, device: torch.device, leader_address: str) -> Collectives:
    """Those for a group whose tensors lie on ``device``; all ranks call this at the same time."""
    if group.size == 1:
        return Alone()
    if device.type == "cuda":
        return DeviceCollectives(group, "nccl", leader_address)
    return MpiCollectives(group)
