"""One rank's part of a pull: its runs of the blocks, read from all source ranks at once, from each piece by piece.

Used by the transfer thread alone, but for its construction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Read, Remote
from tandem.messages import KvHandle, TransferNote

PIECE_BYTES = 32 << 20
"""Most bytes of one read: between two pieces others have their turn, and an abort takes effect."""


STUCK_TIMEOUTS = 5
"""So many of its timeouts a read may take to end, well or badly, until a peer that still grants leases is taken to be
out of reach for good."""


class ReadStuck(Exception):
    """A peer that is there cannot be read from, since an earlier read from it does not end. Only the end of this
    process, and with it of all that its network library holds, gives blocks and connection back."""


class _Stream:
    """What comes from one source rank."""

    def __init__(
        self, agent: Agent, remote: Remote, local_ids: list[int], remote_ids: list[int], clock: Callable[[], float]
    ) -> None:
        self.remote, self._clock = remote, clock
        self._agent, self._local_ids, self._remote_ids = agent, local_ids, remote_ids
        self._blocks_at_once = max(1, PIECE_BYTES // remote.read_bytes)
        self._next_block = 0
        self.read: Read | None = None
        self.began = 0.0
        self.bytes_moved = 0

    @property
    def done(self) -> bool:
        """Whether all is there."""
        return self.read is None and self._next_block == len(self._local_ids)

    def read_on(self, note: TransferNote | None) -> None:
        """Begin with the next piece; ``note`` goes out behind the last one."""
        first, last = self._next_block, self._next_block + self._blocks_at_once
        local = self._local_ids[first:last]
        self.began = self._clock()
        is_last = last >= len(self._local_ids)
        self.read = self._agent.read(self.remote, local, self._remote_ids[first:last], note if is_last else None)
        self._next_block += len(local)

    def has_ended(self) -> bool:
        """Whether the read under way has ended well; raises when it has ended badly."""
        assert self.read is not None
        try:
            if not self._agent.has_ended(self.read):
                return False
        except TandemError:
            self.read = None
            raise
        self.read = None
        self.bytes_moved = self._next_block * self.remote.read_bytes
        return True


class PartRead:
    """See the module. ``prepare``, ``begin``, then ``step`` until ``done`` or until it raises; then ``has_settled``."""

    def __init__(
        self,
        request_id: str,
        handle: KvHandle,
        local_ids: Sequence[int],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``timeout_s`` limits each piece."""
        self._clock = clock
        self.request_id, self.handle, self.local_ids = request_id, handle, list(local_ids)
        self._timeout_s = timeout_s
        self._streams: list[_Stream] = []
        self._stop_reason: TandemError | None = None
        self._note: TransferNote | None = None

    def prepare(self, agent: Agent, remotes: Sequence[Remote]) -> None:
        """Get ready to read from ``remotes``, one for each source rank.

        Raises:
            TandemError: ``handle_malformed``: the blocks do not fit.
        """
        self._check_blocks([agent.info.num_blocks, *(remote.info.num_blocks for remote in remotes)])
        theirs = self.handle.block_ids
        self._streams = [_Stream(agent, remote, self.local_ids, theirs, self._clock) for remote in remotes]

    def begin(self, note: TransferNote | None = None) -> None:
        """Start to read. ``note``, where there is but one source rank, is sent to it as soon as all is there."""
        self._note = note
        for stream in self._streams:
            self._read_on(stream)

    @property
    def done(self) -> bool:
        """Whether every byte is there."""
        return bool(self._streams) and all(stream.done for stream in self._streams)

    @property
    def is_writing(self) -> bool:
        """Whether a read is under way."""
        return any(stream.read is not None for stream in self._streams)

    @property
    def is_near(self) -> bool:
        """Whether all of it is copied from mapped memory."""
        return all(stream.remote.mapped is not None for stream in self._streams)

    @property
    def began(self) -> float:
        """When the newest piece began (of ``clock``)."""
        return max((stream.began for stream in self._streams), default=0.0)

    @property
    def bytes_moved(self) -> int:
        """Bytes of all pieces that have ended well."""
        return sum(stream.bytes_moved for stream in self._streams)

    def step(self) -> bool:
        """Go on as far as possible without waiting; whether anything happened.

        Raises:
            TandemError: why it ends. Where it still ``is_writing`` then, it is to be watched with ``has_settled``.
        """
        moved = False
        for stream in self._streams:
            moved |= self._step(stream)
        lost = next((stream.remote for stream in self._streams if stream.remote.lost), None)
        if lost is not None and not self.done:
            self.stop(TandemError("transfer_failed", f"KV worker {lost.name} was lost or restarted"))
        if self._stop_reason is not None and not self.is_writing:
            raise self._stop_reason
        self._check_deadline()
        return moved

    def has_settled(self) -> bool:
        """Whether no read writes any more, well or badly ended."""
        for stream in self._streams:
            if stream.read is not None:
                try:
                    stream.has_ended()
                except TandemError:
                    continue
        return not self.is_writing

    def stop(self, reason: TandemError) -> None:
        """End with ``reason`` as soon as no read is under way, even where all is there."""
        self._stop_reason = self._stop_reason or reason

    def reads_from(self, remote: Remote) -> bool:
        """Whether a read from ``remote`` is under way."""
        return any(stream.read is not None and stream.remote is remote for stream in self._streams)

    def check_stuck(self, remote: Remote) -> None:
        """To be called when ``remote`` has granted another lease, and cannot be read from for this read.

        Raises:
            ReadStuck: nor will it be.
        """
        for stream in self._streams:
            waited = self._clock() - stream.began
            if stream.read is not None and stream.remote is remote and waited > STUCK_TIMEOUTS * self._timeout_s:
                raise ReadStuck(
                    f"the read of lease {self.handle.lease_id} of KV worker {remote.name} has not ended after "
                    f"{waited:.0f} s, well or badly; that worker is there, but cannot be read from any more"
                )

    def _step(self, stream: _Stream) -> bool:
        if stream.done or (stream.read is None and self._stop_reason is not None):
            return False
        try:
            if stream.read is not None and not stream.has_ended():
                return False
        except TandemError as error:
            self.stop(error)
            return True
        if not stream.done and self._stop_reason is None:
            self._read_on(stream)
        return True

    def _read_on(self, stream: _Stream) -> None:
        """A read that cannot begin ends the part, but only when the others under way have ended."""
        try:
            stream.read_on(self._note)
        except TandemError as error:
            self.stop(error)

    def _check_deadline(self) -> None:
        now = self._clock()
        for stream in self._streams:
            if stream.read is not None and now - stream.began > self._timeout_s:
                stream.remote.lost = True  # nobody else waits for it; once this read has ended it is connected anew
                raise self._stop_reason or TandemError(
                    "transfer_failed",
                    f"reading lease {self.handle.lease_id} of KV worker {stream.remote.name}: no answer within "
                    f"{self._timeout_s:g} s; is it running? (limit: kv.transfer_timeout_s)",
                )

    def _check_blocks(self, num_blocks: Sequence[int]) -> None:
        """``num_blocks``: of this rank, and of each source rank."""
        ours, theirs = self.local_ids, self.handle.block_ids
        if len(theirs) != len(ours):
            raise TandemError("handle_malformed", f"handle: {len(theirs)} blocks for {len(ours)} local ones")
        for ids, limit in ((ours, num_blocks[0]), (theirs, min(num_blocks[1:]))):
            if not ids or min(ids) < 0 or max(ids) >= limit:
                raise TandemError("handle_malformed", f"handle: needs block ids from 0 to {limit - 1}: {ids[:8]}")
