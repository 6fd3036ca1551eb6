"""One pull on its way: read the blocks piece by piece, ask whether the lease held all along, done.

read ── read ── … ── confirm ── confirmed ─► result without error
   any step: late, refused, peer lost, aborted ─► result with an error
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Read, Remote
from tandem.messages import Confirm, KvHandle

PIECE_BYTES = 32 << 20
"""Most bytes of one read: between two pieces others have their turn, and an abort takes effect."""
ASK_AGAIN_S = 0.1
"""A question may arrive before the other side is paired with us; it is repeated until it is answered."""
HASTE_S = 0.005
"""A step has usually ended after this; a longer one is not worth polling without rest."""


@dataclass(frozen=True)
class PullResult:
    """How a pull ended. With an ``error`` the local blocks hold garbage: give them back, do not use them."""

    request_id: str
    error: TandemError | None
    bytes_moved: int
    seconds: float
    """From the call of ``pull`` to its end, the confirmation included."""


class Pull:
    """The state of one pull; used by the transfer thread alone, but for its construction."""

    def __init__(
        self,
        request_id: str,
        handle: KvHandle,
        local_block_ids: Sequence[int],
        on_done: Callable[[PullResult], None],
        timeout_s: float,
    ) -> None:
        self.request_id = request_id
        self.handle = handle
        self.local_ids = list(local_block_ids)
        self._on_done = on_done
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self._step_began = self._started
        self._next_block = 0
        self._ask_at: float | None = None
        self._stop_reason: TandemError | None = None
        self.read: Read | None = None
        self.bytes_moved = 0

    def begin(self, agent: Agent, remote: Remote, correlation: int) -> None:
        """Start to move. ``correlation`` names this pull in its confirmation."""
        self._agent, self.remote, self.correlation = agent, remote, correlation
        self._step_began = time.monotonic()
        self._read_on()

    @property
    def in_haste(self) -> bool:
        """Whether the present step is likely to end within a moment."""
        return time.monotonic() - self._step_began < HASTE_S

    def step(self) -> bool:
        """Go on as far as possible without waiting; whether anything happened.

        Raises:
            TandemError: why the pull ends. ``read`` is set if a read is still under way: it has to be watched.
        """
        now = time.monotonic()
        if self.read is not None and not self._finish_read(now):
            self._check_deadline(now, "reading")
            return False
        if self._stop_reason is not None:
            raise self._stop_reason
        if self._next_block < len(self.local_ids):
            self._read_on()
            return True
        if self._ask_at is None or now >= self._ask_at:
            self._ask(now)
            return True
        self._check_deadline(now, "confirming")
        return False

    def read_has_ended(self) -> bool:
        """Whether no read of this pull writes any more, well or badly ended."""
        try:
            return self.read is None or self._finish_read(time.monotonic())
        except TandemError:
            return True

    def stop(self, reason: TandemError) -> None:
        """End with ``reason`` as soon as no read is under way."""
        self._stop_reason = self._stop_reason or reason

    def end(self, error: TandemError | None) -> None:
        """Tell the caller."""
        seconds = time.monotonic() - self._started
        self._on_done(PullResult(self.request_id, error, self.bytes_moved, seconds))

    def _read_on(self) -> None:
        block_bytes = self.remote.info.block_bytes
        first, last = self._next_block, self._next_block + max(1, PIECE_BYTES // block_bytes)
        local, theirs = self.local_ids[first:last], self.handle.block_ids[first:last]
        self.read = self._agent.read(self.remote, local, theirs)
        self._next_block += len(local)

    def _finish_read(self, now: float) -> bool:
        assert self.read is not None
        try:
            if not self._agent.has_ended(self.read):
                return False
        except TandemError:
            self.read = None
            raise
        self.read = None
        self.bytes_moved = self._next_block * self.remote.info.block_bytes
        self._step_began = now
        return True

    def _ask(self, now: float) -> None:
        question = Confirm(
            correlation=self.correlation, lease_id=self.handle.lease_id, holder=self.remote.info.agent_name
        )
        self._agent.send(self.remote, question)
        self._ask_at = now + ASK_AGAIN_S

    def _check_deadline(self, now: float, doing: str) -> None:
        if now - self._step_began > self._timeout_s:
            raise TandemError(
                "transfer_failed",
                f"{doing} lease {self.handle.lease_id} of KV worker {self.remote.name}: no answer within "
                f"{self._timeout_s:g} s; is it running? (limit: kv.transfer_timeout_s)",
            )
