"""What a rank of the torch engine is made of, leader or follower. All ranks of a group load at the same time, and tell
one another where their KV lies."""

from __future__ import annotations

from pathlib import Path

from tandem.deployment import Deployment, Worker
from tandem.engines.base import LoadingSink
from tandem.engines.identity import make_worker_id
from tandem.engines.torch.checkpoint import read_fingerprint
from tandem.engines.torch.kv_cache import LAYOUT, KvCache
from tandem.engines.torch.runner import ModelRunner, load_runner, max_model_len
from tandem.errors import TandemError
from tandem.kv.leases import LeaseTable
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.reader import KvReader
from tandem.kv.thread import Place
from tandem.kv.transfer import KvTransfer
from tandem.messages import KvFormat, WorkerInfo
from tandem.parallel.group import RankGroup


def load_leader(
    deployment: Deployment, worker: Worker, epoch: int, group: RankGroup, loading: LoadingSink
) -> tuple[WorkerInfo, ModelRunner, PrefixCache, LeaseTable, KvTransfer]:
    """Rank 0: who the worker is, the model, its blocks, their leases, its transfer, started.

    Raises:
        TandemError: what in deployment, environment or checkpoint is wrong.
    """
    if group.partition != worker.partition:
        raise TandemError(
            "engine_failed",
            f"worker {worker.name!r} is a group of {worker.group_size} ranks; start it under its supervisor",
        )
    name = make_worker_id(worker)
    group.share((name, epoch))
    runner = load_runner(deployment, worker, group, loading)
    kv = _kv_format(deployment, runner)
    pool = PrefixCache(runner.cache.num_blocks, enabled=deployment.kv.prefix_cache)
    leases = LeaseTable(pool, deployment.kv.lease_s, words=runner.cache.lease_words)
    loading("transfer", 0.0)
    transfer = KvTransfer(leases=leases, **_registration(deployment, f"{name}-{epoch:x}", group, runner.cache, kv))
    transfer.start()
    info = WorkerInfo(
        worker_id=name,
        epoch=epoch,
        stage=worker.stage,
        engine="torch",
        kv=kv,
        partition=group.partition,
        vocab_size=runner.shard.whole.vocab_size,
        max_model_len=max_model_len(deployment, runner.shard.whole),
        max_batch_size=worker.max_batch_size,
        transfers=group.gather(transfer.info),
    )
    return info, runner, pool, leases, transfer


def load_follower(deployment: Deployment, worker: Worker, group: RankGroup) -> tuple[ModelRunner, KvReader]:
    """Any other rank: its part of the model, and its reader, started.

    Raises:
        TandemError: as in ``load_leader``.
    """
    identity: tuple[str, int] = group.share(None)
    name, epoch = identity
    runner = load_runner(deployment, worker, group, lambda _what, _done: None)
    kv = _kv_format(deployment, runner)
    reader = KvReader(rank=group.rank, **_registration(deployment, f"{name}-{epoch:x}", group, runner.cache, kv))
    reader.start()
    group.gather(reader.info)
    return runner, reader


def _kv_format(deployment: Deployment, runner: ModelRunner) -> KvFormat:
    whole, cache = runner.shard.whole, runner.cache
    return KvFormat(
        fingerprint=read_fingerprint(Path(deployment.model.path)),
        dtype=deployment.model.dtype,
        layout=LAYOUT,
        block_size=cache.block_size,
        num_layers=whole.num_layers,
        num_kv_heads=whole.num_kv_heads,
        slice_bytes=cache.slice_bytes,
    )


def _registration(deployment: Deployment, name: str, group: RankGroup, cache: KvCache, kv: KvFormat) -> Place:
    """What a transfer and a reader are both told. ``name``: of the worker in this epoch, as its leader knows it."""
    return {
        "agent_name": name if group.is_leader else f"{name}-{group.rank}",
        "address": cache.address,
        "shared": cache.shared,
        "block_bytes": cache.block_bytes,
        "num_blocks": cache.num_blocks,
        "memory": "DRAM" if cache.device.type == "cpu" else "VRAM",
        "device_id": cache.device.index or 0,
        "timeout_s": deployment.kv.transfer_timeout_s,
        "kv": kv,
        "partition": group.partition,
    }
