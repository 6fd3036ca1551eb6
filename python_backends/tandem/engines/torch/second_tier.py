"""The second tier that a deployment asks for, on the torch engine's memory."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from tandem.deployment import Worker
from tandem.engines.torch.block_copy import BlockCopier
from tandem.engines.torch.kv_cache import KvCache
from tandem.engines.torch.pace import Pace
from tandem.errors import TandemError
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.tiers.disk import DiskStore
from tandem.kv.tiers.host import HostStore
from tandem.kv.tiers.tier import SecondTier
from tandem.kv.tiers.worth import Worth
from tandem.messages import KvFormat, encode


def make_tier(worker: Worker, kv: KvFormat, cache: KvCache, pool: PrefixCache, pace: Pace) -> SecondTier | None:
    """The worker's second tier, not started yet; None where it has none.

    Raises:
        TandemError: ``invalid_request``: it holds not even one block.
    """
    disk = host = None
    try:
        if worker.kv_disk_bytes:
            format_id = blake2b(encode(kv), digest_size=16).digest()
            directory = Path(worker.kv_disk_path or "") / worker.name
            disk = DiskStore(directory, worker.kv_disk_bytes, cache.block_bytes, format_id)
        if worker.kv_host_bytes:
            host = HostStore(BlockCopier(cache).allocate(worker.kv_host_bytes), cache.block_bytes, below=disk)
    except ValueError as error:
        raise TandemError("invalid_request", f"worker {worker.name!r}, kv_disk or kv_host: {error}") from error
    if host is None and disk is None:
        return None
    worth = Worth(kv.block_size, lambda: pace.seconds_per_token)
    return SecondTier(pool, BlockCopier(cache), BlockCopier(cache), host, disk, worth)
