"""One pull on its way, as the leader of a group sees it.

own part ──────────────┐
followers' reports ────┴─ all there ── confirm ── confirmed ─► result without error
   any step: late, failed, refused, peer lost, aborted ──────► result with an error

Between two processes of a host it is shorter, since one sees which leases of the other hold:

claim ── own part there, and claimed ── lease seen to hold ──► result without error; prefill is told, nobody waits
                                        └─ not seen: confirm, as above
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Remote
from tandem.kv.part import PartRead
from tandem.messages import Claim, Confirm, ReadEnded, TransferNote

ASK_AGAIN_S = 0.1
"""A question may arrive before the other side is paired with us; it is repeated until it is answered."""


@dataclass(frozen=True)
class PullResult:
    """How a pull ended. With an ``error`` the local blocks hold garbage: give them back, do not use them."""

    request_id: str
    error: TandemError | None
    bytes_moved: int
    """Of all ranks, as far as they have reported."""
    seconds: float
    """From the call of ``pull`` to its end, the confirmation included."""


class Pull:
    """The state of one pull; used by the transfer thread alone, but for its construction."""

    def __init__(
        self,
        part: PartRead,
        shares: dict[int, int],
        on_done: Callable[[PullResult], None],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``shares``: bytes of all the blocks by follower's rank. ``timeout_s`` limits the confirmation, and half of
        the time for which followers are waited for once the own part is there."""
        self.part = part
        self._shares, self._on_done, self._timeout_s, self._clock = shares, on_done, timeout_s, clock
        self._reported: dict[int, int] = {}
        """Bytes by follower that has all of its part."""
        self._writing = set(shares)
        """Followers that may still write: they have not reported their end."""
        self._started = self._step_began = clock()
        self._own_done = False
        self._ask_at: float | None = None
        self._asked_by_read = self._claims = False
        self._claimed = self._confirmed = self._tells = False
        self._stop_reason: TandemError | None = None

    @property
    def request_id(self) -> str:
        """Of the request that the blocks are for."""
        return self.part.request_id

    @property
    def began(self) -> float:
        """When the present step began (of ``clock``)."""
        return max(self.part.began, self._step_began)

    @property
    def is_near(self) -> bool:
        """Whether nothing of it goes through NIXL."""
        return self.part.is_near and self.leader.is_near

    def ask_for_confirmation(
        self, agent: Agent, leader: Remote, correlation: int, *, reads_leader_only: bool
    ) -> TransferNote | None:
        """Whom to ask in the end, and the name of this pull in the question. Returned is the question where the read
        itself can ask it at its end: no other rank reads, and nothing is read from another one. If the leases can be
        seen from here, its claim goes out now, to be answered while the read is under way."""
        self._agent, self.leader, self.correlation = agent, leader, correlation
        alone = reads_leader_only and not self._shares
        self._claims, self._asked_by_read = alone and leader.lease_words is not None, alone
        if not self._claims:
            return self._question if alone else None
        self._agent.send(leader, self._question)
        return None

    def step(self) -> bool:
        """Go on as far as possible without waiting; whether anything happened.

        Raises:
            TandemError: why the pull ends. Somebody ``may_write`` then.
        """
        moved = False
        if not self.part.done:
            moved = self.part.step()
            if not self.part.done:
                return moved
        now = self._clock()
        if not self._own_done:
            self._own_done, self._step_began = True, now
            if self._asked_by_read:
                self._ask_at = now + ASK_AGAIN_S
        if self._stop_reason is not None:
            raise self._stop_reason
        if self.leader.lost:
            raise TandemError("transfer_failed", f"KV worker {self.leader.name} was lost or restarted")
        if len(self._reported) < len(self._shares):
            self._check_followers(now)
            return moved
        if self._claims and self._claimed:
            self._look_at_lease()
        if self._confirmed:
            return False
        if self._ask_at is None or now >= self._ask_at:
            self._ask(now)
            return True
        self._check_deadline(now)
        return False

    def claim(self) -> None:
        """Nobody else redeems the lease."""
        self._claimed = True

    def confirm(self) -> None:
        """The lease held. The answer may be quicker than the news that the read has ended."""
        self._confirmed = True

    @property
    def done(self) -> bool:
        """Whether all parts are there, and the lease held all along."""
        return self._confirmed and self.part.done

    def take(self, report: ReadEnded) -> None:
        """What a follower says of its part. A bad end of it ends the pull."""
        if report.rank not in self._writing:
            return
        if not report.still_writing:
            self._writing.discard(report.rank)
        if report.code is not None:
            self.stop(TandemError(report.code, f"rank {report.rank} of the group: {report.message}"))
        elif report.bytes_moved != (share := self._shares[report.rank]):
            what = f"rank {report.rank} of the group has read {report.bytes_moved} bytes instead of {share}"
            self.stop(TandemError("transfer_failed", what))
        else:
            self._reported[report.rank] = report.bytes_moved

    def stop(self, reason: TandemError) -> None:
        """End with ``reason`` as soon as no read of this rank is under way."""
        self._stop_reason = self._stop_reason or reason
        self.part.stop(reason)

    def may_write(self) -> bool:
        """Whether a read of any rank may still write into the local blocks."""
        return not self.part.has_settled() or bool(self._writing)

    def end(self, error: TandemError | None) -> None:
        """Tell the caller; then prefill, where it has not been asked."""
        moved = self.part.bytes_moved + sum(self._reported.values())
        self._on_done(PullResult(self.request_id, error, moved, self._clock() - self._started))
        if self._tells:
            with contextlib.suppress(TandemError):  # if it is not heard, the lease ends by time
                self._agent.send(self.leader, self._question)

    def _check_followers(self, now: float) -> None:
        if now - self._step_began > 2 * self._timeout_s:
            late = ", ".join(str(rank) for rank in sorted(self._shares.keys() - self._reported.keys()))
            raise TandemError(
                "transfer_failed",
                f"no report of rank {late} of the group on its part of lease {self.part.handle.lease_id} within "
                f"{2 * self._timeout_s:g} s; is it running? (limit: twice kv.transfer_timeout_s)",
            )

    def _look_at_lease(self) -> None:
        """After the last byte was read: a lease that is seen to hold has held all along. Locks were given back and
        taken in between, on prefill's side as well, so no processor sees the two in another order."""
        self._claims, self._ask_at = False, None
        self._confirmed = self._tells = self.leader.holds(self.part.handle.lease_id)

    def _ask(self, now: float) -> None:
        if self._ask_at is None:
            self._step_began = now
        self._agent.send(self.leader, self._question)
        self._ask_at = now + ASK_AGAIN_S

    @property
    def _question(self) -> Claim | Confirm:
        lease_id, holder = self.part.handle.lease_id, self.leader.info.agent_name
        kind = Claim if self._claims else Confirm
        return kind(correlation=self.correlation, lease_id=lease_id, holder=holder)

    def _check_deadline(self, now: float) -> None:
        if now - self._step_began > self._timeout_s:
            raise TandemError(
                "transfer_failed",
                f"confirming lease {self.part.handle.lease_id} of KV worker {self.leader.name}: no answer within "
                f"{self._timeout_s:g} s; is it running? (limit: kv.transfer_timeout_s)",
            )
