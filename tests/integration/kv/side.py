"""Both sides of a hand-over with real NIXL: groups in processes that can be frozen and killed, and one decode worker of
a single rank in this process, whose pool and memory can be looked at.
"""

from __future__ import annotations

import queue
from typing import Any

from kv_ranks import DEADLINE_S, Group, Outcome, Rank, WorkerSpec, make_info

from tandem.messages import KvFormat, KvHandle, Partition, PullOrder

BLOCK_BYTES = 64 * 1024
KV = KvFormat(
    fingerprint="f",
    dtype="float32",
    layout="head-major-v2",
    block_size=4,
    num_layers=1,
    num_kv_heads=1,
    slice_bytes=BLOCK_BYTES,
)
"""One rank, one piece: what is cut where has tests of its own."""


class Decode(Rank):
    """A decode worker here. ``partition``: of the group that it leads; its followers are the test's to play."""

    def __init__(self, worker_id: str = "decode_0", kv: KvFormat = KV, **options: Any) -> None:
        self._results: queue.Queue[Outcome] = queue.Queue()
        spec = WorkerSpec(worker_id, "decode", kv, **options)
        super().__init__(spec, 0, self._results.put)
        self.worker = make_info(spec, [self.info()] * spec.partition.size)

    def begin_pull(self, request_id: str, handle: KvHandle) -> list[int]:
        """Start a pull to fresh blocks; they keep their number until given back."""
        ids = self.pool.allocate(len(handle.block_ids))
        self.pull(PullOrder(request_id=request_id, handle=handle, block_ids=ids))
        return ids

    def result(self) -> Outcome:
        """The next pull that ends."""
        return self._results.get(timeout=DEADLINE_S)

    def nothing_more(self) -> bool:
        """Whether no result is left over."""
        return self._results.empty()

    def holds(self, block_ids: list[int], seeds: list[int]) -> bool:
        """Whether blocks hold just the content named ``seeds``."""
        return self.wrong_blocks(block_ids, seeds) == []


def group(tensor: int = 1, pipeline: int = 1) -> Partition:
    return Partition(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)


class Workers:
    """Starts workers, and ends them after the test."""

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._decodes: list[Decode] = []

    def prefill(self, worker_id: str = "prefill_0", kv: KvFormat = KV, **options: Any) -> Group:
        return self.start(WorkerSpec(worker_id, "prefill", kv, **options))[0]

    def decode(self, worker_id: str = "decode_0", **options: Any) -> Decode:
        """A decode worker in this process."""
        self._decodes.append(Decode(worker_id, **options))
        return self._decodes[-1]

    def start(self, *specs: WorkerSpec) -> list[Group]:
        """Groups, all at once."""
        groups = [Group(spec) for spec in specs]
        self._groups += groups
        for one in groups:
            one.wait_ready()
        return groups

    def end(self) -> None:
        for one in self._groups:
            one.kill()
        for decode in self._decodes:
            decode.stop()


def introduce(prefill: Group, decode: Decode | Group) -> None:
    """Pair two workers with one another."""
    decode.pair(prefill.info)
    prefill.pair(decode.worker if isinstance(decode, Decode) else decode.info)
