"""The KV transfer of an engine group, on its leader: pulls, leases, and the questions about them.

A process without followers is a leader too. Followers read their own parts (``reader.py``); what they say of them comes
in through ``part_ended``.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tandem.errors import TandemError
from tandem.kv.agent import Agent
from tandem.kv.confirmations import Confirmations
from tandem.kv.leases import LeaseTable
from tandem.kv.lending import Borrowing, Loan, lend
from tandem.kv.part import PartRead
from tandem.kv.peers import LEADER, Peer
from tandem.kv.pull import Pull, PullResult
from tandem.kv.reshard import block_bytes_of
from tandem.kv.thread import IDLE_POLL_S, Place, TransferThread
from tandem.messages import (
    Borrow,
    Claim,
    Claimed,
    Confirm,
    Confirmed,
    KvHandle,
    Lent,
    NotConfirmed,
    ReadEnded,
    TransferNote,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the library's from Python 3.11 on

log = logging.getLogger(__name__)

LENT_TIMEOUT_S = 2.0
"""Limits each step of a pull of what was lent, as far as ``kv.transfer_timeout_s`` allows more: it can be computed."""
LENT_LATELY_S = 1.0
"""For so long after somebody wanted to borrow, the next one is looked for as often as confirmations are."""


class KvTransfer(TransferThread):
    """See the module. All methods are thread-safe and do not wait, but start and stop."""

    def __init__(
        self,
        *,
        leases: LeaseTable,
        clock: Callable[[], float] = time.monotonic,
        make_agent: Callable[..., Agent] = Agent,
        **place: Unpack[Place],
    ) -> None:
        """``leases`` are those of this worker, and their pool is the one that local blocks of pulls come from.
        ``clock`` and ``make_agent`` as in ``TransferThread``.

        Raises:
            ValueError: ``block_bytes`` is not what the leader holds of a block.
        """
        super().__init__(LEADER, clock=clock, make_agent=make_agent, **place)
        self._leases = leases
        self._leases.on_grant = self._note_serving
        self._confirmations = Confirmations(place["agent_name"], leases)
        kv, partition = place["kv"], place["partition"]
        self._followers = {rank: block_bytes_of(partition, rank, kv) for rank in range(1, partition.size)}
        """Block bytes by rank."""
        self._pulls: dict[str, Pull] = {}
        self._lingering: dict[str, Pull] = {}
        """Ended for their caller, but somebody's read may still write: their blocks are pinned."""
        self._correlations = itertools.count(1)
        self._in_use: set[str] = set()
        """Request ids of both: what followers report names nothing else."""
        self._expire_at = 0.0
        self._asked_to_lend_at = -LENT_LATELY_S

    def open(self) -> None:
        """As every transfer."""
        super().open()
        self._borrowing = Borrowing(self._agent, self._peers, self._correlations, self._begin_lent, self._clock)

    # ------------------------------------------------------------ for the engine

    def pull(
        self,
        request_id: str,
        handle: KvHandle,
        local_block_ids: Sequence[int],
        on_done: Callable[[PullResult], None],
    ) -> None:
        """Copy the handle's blocks to ``local_block_ids``, one to one, and redeem its lease. Every follower must be
        ordered to do its part after this call, also where it ends at once.

        ``on_done`` is called once, from the transfer thread, when it is over. No read writes to the local blocks
        then, with one exception: where it ends badly, a read that hangs or that a follower has not reported the end
        of may still write. Those blocks stay pinned: given back to the pool, they are handed out only after that.

        Raises:
            TandemError: ``invalid_request``: the request has a pull, or one that may still write, and nothing was
                begun; ``transfer_failed``: the transfer has ended.
        """
        if request_id in self._in_use:
            raise TandemError("invalid_request", f"request {request_id!r} has a pull that has not ended on all ranks")
        pull = self._make_pull(request_id, handle, local_block_ids, on_done, self._place["timeout_s"])
        self._in_use.add(request_id)
        try:
            self._command(lambda: self._begin(pull))
        except TandemError:
            self._in_use.discard(request_id)
            raise

    def borrow(self, loan: Loan) -> None:
        """Ask another worker for KV, and pull what it lends. As in ``pull`` its ``on_done`` is called once, and what it
        ``accept``s is pulled by all ranks.

        Raises:
            TandemError: ``transfer_failed``: the transfer has ended.
        """
        self._command(lambda: self._borrowing.ask(loan))

    def part_ended(self, report: ReadEnded) -> None:
        """Take what a follower says of its part of a pull; nothing happens after the transfer has ended.

        Raises:
            ValueError: from a rank that is no follower.
        """
        if report.rank not in self._followers:
            raise ValueError(f"rank {report.rank} is none of the followers {sorted(self._followers)}")
        try:
            self._command(lambda: self._take_report(report))
        except TandemError as error:
            log.debug("a report comes too late: %s", error)

    def abort(self, request_id: str) -> None:
        """End a pull with the error ``cancelled``, unless it is over. Followers are to be told by the caller."""
        self._command(lambda: self._abort(request_id))

    # ------------------------------------------------------------ the transfer thread

    def _parts(self) -> Iterable[PartRead]:
        return [pull.part for pull in itertools.chain(self._pulls.values(), self._lingering.values())]

    def _is_serving(self) -> bool:
        return self._leases.held > 0 or self._clock() - self._asked_to_lend_at < LENT_LATELY_S

    def _busy_since(self) -> float | None:
        began = [pull.began for pull in self._pulls.values() if not pull.is_near]
        return max([*began, *self._borrowing.asked_at], default=None)

    def _take(self, sender: str, note: TransferNote) -> None:
        if isinstance(note, Claim | Confirm | Borrow):
            peer = self._peers.find_leader(sender)
            if peer is not None:  # else it asks again, and by then we may be paired
                self._reply(peer, note)
        elif isinstance(note, Lent):
            self._borrowing.take(sender, note)
        else:
            self._settle(sender, note)

    def _reply(self, peer: Peer, question: Claim | Confirm | Borrow) -> None:
        answer: TransferNote
        if isinstance(question, Borrow):
            self._asked_to_lend_at = self._clock()
            answer = lend(self._leases, peer.leader_name, question)
        else:
            answer = self._confirmations.answer(peer.leader_name, question)
        try:
            self._agent.send(self._peers.connect(peer, LEADER), answer)
        except TandemError as error:
            log.warning("an answer is lost: %s", error)

    def _make_pull(
        self,
        request_id: str,
        handle: KvHandle,
        local_block_ids: Sequence[int],
        on_done: Callable[[PullResult], None],
        timeout_s: float,
    ) -> Pull:
        part = PartRead(request_id, handle, local_block_ids, timeout_s, self._clock)
        shares = {rank: len(part.local_ids) * size for rank, size in self._followers.items()}
        return Pull(part, shares, on_done, timeout_s, self._clock)

    def _begin_lent(
        self, request_id: str, handle: KvHandle, local_block_ids: list[int], on_done: Callable[[PullResult], None]
    ) -> None:
        timeout_s = min(LENT_TIMEOUT_S, self._place["timeout_s"])
        self._in_use.add(request_id)
        self._begin(self._make_pull(request_id, handle, local_block_ids, on_done, timeout_s))

    def _begin(self, pull: Pull) -> None:
        self._pulls[pull.request_id] = pull
        try:
            peer = self._find_peer(pull.part)
            self._prepare(pull.part, peer)
            question = pull.ask_for_confirmation(
                self._agent,
                self._peers.connect(peer, LEADER),
                next(self._correlations),
                reads_leader_only=peer.source_ranks == [LEADER],
            )
            pull.part.begin(question)
        except TandemError as error:
            self._finish(pull, error)

    def _advance(self) -> bool:
        busy = False
        for pull in list(self._pulls.values()):
            try:
                busy |= pull.step()
                if pull.done:
                    self._finish(pull, None)
                    busy = True
            except TandemError as error:
                self._finish(pull, error)
                busy = True
        for pull in list(self._lingering.values()):
            self._release(pull)
        self._borrowing.give_up_late()
        if self._leases.held and (now := self._clock()) >= self._expire_at:
            self._leases.expire()
            self._expire_at = now + IDLE_POLL_S
        return busy

    def _settle(self, sender: str, answer: Claimed | Confirmed | NotConfirmed) -> None:
        for pull in self._pulls.values():
            if pull.correlation == answer.correlation and pull.leader.name == sender:
                if isinstance(answer, NotConfirmed):
                    self._finish(pull, TandemError(answer.code, answer.message))
                elif isinstance(answer, Claimed):
                    pull.claim()
                else:
                    pull.confirm()
                return

    def _take_report(self, report: ReadEnded) -> None:
        if pull := self._pulls.get(report.request_id) or self._lingering.get(report.request_id):
            pull.take(report)

    def _abort(self, request_id: str) -> None:
        reason = TandemError("cancelled", f"the pull of request {request_id!r} was cancelled")
        self._borrowing.abort(request_id, reason)
        if pull := self._pulls.get(request_id):
            pull.stop(reason)

    def _finish(self, pull: Pull, error: TandemError | None) -> None:
        """Tell the caller; pin the blocks before, where they may change after."""
        del self._pulls[pull.request_id]
        if pull.may_write():
            self._leases.pool.pin(pull.part.local_ids)
            self._lingering[pull.request_id] = pull
        else:
            self._in_use.discard(pull.request_id)
        try:
            pull.end(error)
        except Exception:
            log.exception("on_done of request %s failed", pull.request_id)

    def _release(self, pull: Pull) -> None:
        """Unpin the blocks of a pull that nobody writes for any more."""
        if not pull.may_write():
            del self._lingering[pull.request_id]
            self._in_use.discard(pull.request_id)
            self._leases.pool.unpin(pull.part.local_ids)

    def _end_all(self, reason: TandemError) -> None:
        self._borrowing.end_all(reason)
        for pull in list(self._pulls.values()):
            self._finish(pull, reason)
