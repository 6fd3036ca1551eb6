"""How one worker gives another what it has in its prefix cache, so that a prompt's beginning is computed once in a
deployment, not once on each worker.

    borrower                                  lender
       ├─ Borrow: names of a prompt's blocks ──►│ holds those that it has, and grants a lease
       │◄─────── Lent: lease, blocks, digest ───┤
       ├─ reads and confirms, as in any pull ──►│ lets go of them

Names are too short to prove what they name, so the digest has to be that of the borrower's own tokens. The lease does
the rest: what was evicted meanwhile is never used.
"""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Remote
from tandem.kv.handle import check, make_handle
from tandem.kv.leases import LeaseTable
from tandem.kv.peers import LEADER, Peers
from tandem.kv.prefix_cache import Chain, PrefixCache
from tandem.kv.pull import PullResult
from tandem.messages import Borrow, Confirm, KvHandle, Lent, WorkerInfo

PATIENCE_S = 1.0
"""For so long a lender's answer is waited for: who hears nothing computes, which takes about as long."""

Accept = Callable[[Lent], tuple[KvHandle, list[int]]]
"""Makes a handle of what was lent, and says which blocks to read it into. Raises ``TandemError``: it is of no use."""
OnDone = Callable[[PullResult], None]


def lend(leases: LeaseTable, borrower: str, wanted: Borrow) -> Lent:
    """What there is of ``wanted``, under a lease in the name of the ``borrower``."""
    pool = leases.pool
    nothing = Lent(correlation=wanted.correlation, lease_id=0, block_ids=[], digest=b"")
    if not isinstance(pool, PrefixCache):
        return nothing
    blocks, digest = pool.lend(wanted.names, wanted.salt)
    if len(blocks) <= wanted.beyond:
        pool.free(blocks)
        return nothing
    lease_id = leases.grant(f"{borrower}/{wanted.correlation}", blocks)
    pool.make_spare(blocks)  # the borrower keeps them, or whom it hands them over to
    return Lent(correlation=wanted.correlation, lease_id=lease_id, block_ids=blocks, digest=digest)


def as_handle(lent: Lent, mine: WorkerInfo, lender: WorkerInfo, token_ids: list[int], chain: Chain) -> KvHandle:
    """The handle that a prefill of the beginning of ``token_ids`` would have returned. ``chain`` names their blocks.

    Raises:
        TandemError: ``handle_tokens``: there is nothing, or it is another text's; else as ``handle.check``.
    """
    count = len(lent.block_ids)
    known = token_ids[: count * mine.kv.block_size]
    is_whole = 0 < len(known) == count * mine.kv.block_size
    if not is_whole or not hmac.compare_digest(lent.digest, chain.digest(count - 1)):
        raise TandemError("handle_tokens", f"worker {lender.worker_id!r} lends nothing of this prompt")
    handle = make_handle(lender, lent.lease_id, known, lent.block_ids)
    check(handle, mine, lender, known)
    return handle


@dataclass(frozen=True)
class Loan:
    """What a request would like to borrow."""

    request_id: str
    worker_id: str
    """The lender's."""
    salt: str
    names: list[int]
    """As in ``Borrow``."""
    beyond: int
    accept: Accept
    on_done: OnDone
    """Hears how it ended, as of a pull."""


@dataclass(frozen=True)
class _Asked:
    loan: Loan
    lender: Remote
    at: float


class Borrowing:
    """What was asked of lenders and not answered yet. Used by the transfer thread alone."""

    def __init__(
        self,
        agent: Agent,
        peers: Peers,
        correlations: Iterator[int],
        begin: Callable[[str, KvHandle, list[int], OnDone], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``begin`` pulls what was lent to a request, into these blocks."""
        self._agent, self._peers, self._correlations, self._clock = agent, peers, correlations, clock
        self._begin = begin
        self._asked: dict[int, _Asked] = {}
        """By correlation."""

    @property
    def asked_at(self) -> list[float]:
        """When questions were asked whose answers come through NIXL."""
        return [asked.at for asked in self._asked.values() if not asked.lender.is_near]

    def ask(self, loan: Loan) -> None:
        """Ask the lender; it is over at once where that cannot be done."""
        correlation = next(self._correlations)
        note = Borrow(correlation=correlation, salt=loan.salt, names=loan.names, beyond=loan.beyond)
        try:
            peer = self._peers.get(loan.worker_id)
            if peer is None:
                raise TandemError("handle_unknown_worker", f"not paired with {loan.worker_id!r}, which was to lend KV")
            lender = self._peers.connect(peer, LEADER)
            self._agent.send(lender, note)
        except TandemError as error:
            loan.on_done(PullResult(loan.request_id, error, 0, 0.0))
            return
        self._asked[correlation] = _Asked(loan, lender, self._clock())

    def take(self, sender: str, lent: Lent) -> None:
        """Pull what was lent; what is of no use, or comes too late, is given back."""
        asked = self._asked.get(lent.correlation)
        if asked is None or asked.lender.name != sender:
            self._give_back(sender, lent.lease_id)
            return
        del self._asked[lent.correlation]
        loan = asked.loan

        def done(result: PullResult) -> None:
            if result.error is not None:
                self._give_back(sender, lent.lease_id)
            loan.on_done(result)

        try:
            handle, local_block_ids = loan.accept(lent)
            self._begin(loan.request_id, handle, local_block_ids, done)
        except TandemError as error:
            done(PullResult(loan.request_id, error, 0, self._clock() - asked.at))

    def give_up_late(self) -> None:
        """End what was not answered in time, or by a worker that is lost."""
        late, what = self._clock() - PATIENCE_S, f"the worker that was to lend KV is silent for {PATIENCE_S:g} s"
        self._give_up(lambda asked: asked.at < late or asked.lender.lost, TandemError("transfer_failed", what))

    def abort(self, request_id: str, reason: TandemError) -> None:
        """End what was asked for a request."""
        self._give_up(lambda asked: asked.loan.request_id == request_id, reason)

    def end_all(self, reason: TandemError) -> None:
        """End everything."""
        self._give_up(lambda _: True, reason)

    def _give_up(self, chosen: Callable[[_Asked], bool], reason: TandemError) -> None:
        for correlation, asked in [(c, a) for c, a in self._asked.items() if chosen(a)]:
            del self._asked[correlation]
            loan = asked.loan
            loan.on_done(PullResult(loan.request_id, reason, 0, self._clock() - asked.at))

    def _give_back(self, lender: str, lease_id: int) -> None:
        """End a lease that nobody reads under; where that is not heard, it ends by time."""
        peer = self._peers.find_leader(lender)
        if peer is not None and lease_id:
            note = Confirm(correlation=next(self._correlations), lease_id=lease_id, holder=lender)
            with contextlib.suppress(TandemError):
                self._agent.send(self._peers.connect(peer, LEADER), note)
