"""Simulated workers of both stages, wired to each other: KV moves between all of them, by the profile's clock alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from tandem.deployment import Faults
from tandem.engines.sim.engine import make_kv_format
from tandem.engines.sim.profiles import Profile
from tandem.engines.sim.worker import SimulatedWorker
from tandem.engines.torch.handover import HandOver
from tandem.engines.torch.leader import Leader
from tandem.engines.torch.pace import Pace
from tandem.engines.torch.scheduler import Scheduler
from tandem.errors import TandemError
from tandem.keys import KEY_BYTES, Keys
from tandem.kv.leases import LeaseTable
from tandem.kv.lending import Loan, lend
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.pull import PullResult
from tandem.kv.reshard import block_bytes_of
from tandem.kv.transfer import KvTransfer
from tandem.messages import Borrow, KvHandle, Partition, StageName, TransferInfo, WorkerInfo
from tandem.parallel.group import RankGroup
from tandem.simulation.trace import TRACE_BLOCK, VOCAB_SIZE


@dataclass
class Clock:
    """The time of a simulation, in seconds."""

    now: float = 0.0


@dataclass(frozen=True)
class WorkerPlan:
    """What all workers of a fleet have in common; the fields of the deployment file of the same names."""

    profile: Profile
    block_size: int = TRACE_BLOCK
    max_batch_size: int = 128
    max_batch_tokens: int = 8192
    max_inter_token_s: float = 0.2
    lease_s: float = 30.0
    prefix_cache: bool = True
    faults: Faults = field(default_factory=Faults)

    @property
    def num_blocks(self) -> int:
        """KV blocks of one worker: what the profile's GPU memory holds."""
        return int(self.profile.kv_bytes // (self.profile.timing.kv_bytes_per_token * self.block_size))


class DirectTransfer:
    """Redeems leases where they were granted, at once: the time that bytes take is the simulated worker's affair."""

    def __init__(self, grantors: dict[str, LeaseTable], on_redeemed: Callable[[str], None]) -> None:
        """``grantors``: leases by worker; ``on_redeemed`` hears whose blocks came free."""
        self._grantors, self._on_redeemed = grantors, on_redeemed
        self._loans = itertools.count(1)

    def pull(
        self, request_id: str, handle: KvHandle, local_block_ids: list[int], on_done: Callable[[PullResult], None]
    ) -> None:
        """As ``KvTransfer.pull``; ``on_done`` is called before this returns."""
        moved = len(local_block_ids) * block_bytes_of(handle.partition, 0, handle.kv)  # or would be
        try:
            self._grantors[handle.worker_id].confirm(handle.lease_id)
        except TandemError as error:
            on_done(PullResult(request_id, error, 0, 0.0))
            return
        on_done(PullResult(request_id, None, moved, 0.0))
        self._on_redeemed(handle.worker_id)

    def borrow(self, loan: Loan) -> None:
        """As ``KvTransfer.borrow``; its ``on_done`` is called before this returns."""
        wanted = Borrow(correlation=next(self._loans), salt=loan.salt, names=loan.names, beyond=loan.beyond)
        leases = self._grantors[loan.worker_id]
        lent = lend(leases, loan.request_id, wanted)
        try:
            handle, local_block_ids = loan.accept(lent)
        except TandemError as error:
            if lent.lease_id:
                leases.confirm(lent.lease_id)
            loan.on_done(PullResult(loan.request_id, error, 0, 0.0))
            return
        self.pull(loan.request_id, handle, local_block_ids, loan.on_done)

    def abort(self, request_id: str) -> None:
        """As ``KvTransfer.abort``; no pull is ever under way."""


def make_fleet(
    plan: WorkerPlan, prefill: int, decode: int, clock: Clock, on_redeemed: Callable[[str], None]
) -> list[SimulatedWorker]:
    """``prefill`` and ``decode`` many workers, each paired with all others: prefill first, in the order of their
    numbers."""
    grantors: dict[str, LeaseTable] = {}
    transfer = DirectTransfer(grantors, on_redeemed)
    stages: list[StageName] = [*["prefill"] * prefill, *["decode"] * decode]  # type: ignore[list-item]
    workers = []
    for place, stage in enumerate(stages):
        name = f"{stage}_{place if stage == 'prefill' else place - prefill}"
        workers.append(make_worker(plan, name, stage, clock, grantors, transfer))
    infos = {worker.info.worker_id: worker.info for worker in workers}
    for worker in workers:
        worker.handover.peers = infos
    return workers


def make_worker(
    plan: WorkerPlan,
    name: str,
    stage: StageName,
    clock: Clock,
    grantors: dict[str, LeaseTable],
    transfer: DirectTransfer,
    *,
    coarse: bool = True,
) -> SimulatedWorker:
    """One worker, entered among the ``grantors``."""
    pool = PrefixCache(plan.num_blocks, enabled=plan.prefix_cache)
    leases = grantors[name] = LeaseTable(pool, plan.lease_s, clock=lambda: clock.now)
    kv = make_kv_format(plan.profile, "bfloat16", plan.block_size, as_modelled=True)
    place = TransferInfo(
        agent_name=name,
        agent_metadata=b"",
        address=0,
        block_bytes=block_bytes_of(Partition(), 0, kv),
        num_blocks=plan.num_blocks,
    )
    info = WorkerInfo(
        worker_id=name,
        epoch=1,
        stage=stage,
        engine="sim",
        kv=kv,
        vocab_size=VOCAB_SIZE,
        max_model_len=plan.profile.context,
        max_batch_size=plan.max_batch_size,
        transfers=[place],
    )
    stand_in = cast(KvTransfer, transfer)  # has what a worker uses of it
    return SimulatedWorker(
        info,
        plan.profile.timing,
        Scheduler(pool, plan.max_batch_size, plan.max_batch_tokens, Pace(plan.max_inter_token_s)),
        leases,
        HandOver(info, leases, stand_in, Leader(RankGroup.current()), Keys([bytes(KEY_BYTES)])),
        stand_in,
        faults=plan.faults,
        coarse=coarse,
    )
