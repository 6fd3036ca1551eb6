"""The engine's part in handing KV over: handles out (prefill), handles in and pulls (decode), and what is borrowed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tandem.engines.torch.leader import Leader
from tandem.engines.torch.sequence import Sequence
from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.kv.handle import check, make_handle, sign, verify
from tandem.kv.leases import LeaseTable
from tandem.kv.lending import Loan, as_handle
from tandem.kv.pull import PullResult
from tandem.kv.transfer import KvTransfer
from tandem.messages import Decode, HeldBlocks, KvHandle, Lent, WorkerInfo

REDEEMED_REMEMBERED = 4096
"""Handles that this worker remembers having taken; the lease refuses an older one."""


class HandOver:
    """Leases, handles and pulls of one worker. Used by the engine's thread alone, but for ``peers``."""

    def __init__(self, info: WorkerInfo, leases: LeaseTable, transfer: KvTransfer, leader: Leader, keys: Keys) -> None:
        self._info, self._leases, self._transfer, self._leader, self._keys = info, leases, transfer, leader, keys
        self.peers: dict[str, WorkerInfo] = {}
        """Paired workers by id."""
        self._redeemed: OrderedDict[tuple[str, int, int], None] = OrderedDict()
        """(worker, epoch, lease) of handles taken."""

    def grant(self, sequence: Sequence) -> bytes:
        """Put a prefilled sequence's blocks under lease, and return the signed handle. They are the lease's then."""
        blocks, sequence.block_ids = sequence.block_ids, []
        lease_id = self._leases.grant(sequence.request_id, blocks)
        known = sequence.token_ids[: sequence.num_cached]
        return sign(make_handle(self._info, lease_id, known, blocks), self._keys)

    def accept(self, work: Decode) -> KvHandle:
        """Check the handle of ``work``. It may cover all tokens but the last, or fewer; the rest is read here.

        Raises:
            TandemError: why it cannot be redeemed.
        """
        handle = verify(work.handle, self._keys)
        known = [*work.token_ids, *work.output_ids][:-1]
        check(handle, self._info, self.peers.get(handle.worker_id), known[: handle.num_tokens])
        name = (handle.worker_id, handle.epoch, handle.lease_id)
        if name in self._redeemed:
            raise TandemError("handle_used", f"handle: lease {handle.lease_id} was redeemed here before")
        self._redeemed[name] = None
        if len(self._redeemed) > REDEEMED_REMEMBERED:
            self._redeemed.popitem(last=False)
        return handle

    def pull(self, sequence: Sequence, handle: KvHandle, on_done: Callable[[PullResult], None]) -> None:
        """Start to pull into the sequence's first blocks, those left out that are shared with others and hold the same
        already; ``on_done`` is called from the transfer's thread.

        Raises:
            TandemError: ``transfer_failed``: the transfer has ended.
        """
        handle, local = _without_shared(handle, sequence)
        self._transfer.pull(sequence.request_id, handle, local, on_done)
        self._leader.pull(sequence.request_id, handle, local)

    def borrow(self, sequence: Sequence, on_done: Callable[[PullResult], None]) -> None:
        """Start to pull the sequence's first blocks from its lender, as many as that still has; how many that were is
        the sequence's ``num_lent`` then. ``on_done`` is called from the transfer's thread.

        Raises:
            TandemError: ``handle_unknown_worker``: it is not paired with us; ``transfer_failed``: the transfer has
                ended.
        """
        assert sequence.lender is not None
        worker_id = sequence.lender.worker_id
        if (lender := self.peers.get(worker_id)) is None:
            raise TandemError("handle_unknown_worker", f"not paired with {worker_id!r}, which was to lend KV")

        def accept(lent: Lent) -> tuple[KvHandle, list[int]]:
            handle = as_handle(lent, self._info, lender, sequence.token_ids, sequence.chain)
            handle, local = _without_shared(handle, sequence)
            sequence.num_lent = len(lent.block_ids)
            self._leader.pull(sequence.request_id, handle, local)
            return handle, local

        names = [sequence.chain[i][0] for i in range(sequence.most_reusable)]
        salt, beyond = sequence.work.salt, sequence.num_shared
        self._transfer.borrow(Loan(sequence.request_id, worker_id, salt, names, beyond, accept, on_done))


def _without_shared(handle: KvHandle, sequence: Sequence) -> tuple[KvHandle, list[int]]:
    """What is to be pulled of a handle, and to which blocks: not those that are shared, and hold the same already."""
    local = sequence.block_ids[sequence.num_shared : len(handle.block_ids)]
    left = HeldBlocks(block_ids=handle.block_ids[sequence.num_shared :])
    return msgspec.structs.replace(handle, held=left), local
