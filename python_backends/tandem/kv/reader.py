"""The KV transfer of an engine group, on a follower: it reads its own part of each pull, and is read from.

It never asks for a confirmation: that is the leader's (``transfer.py``), which hears of every part's end before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tandem.errors import TandemError
from tandem.kv.part import PartRead
from tandem.kv.thread import Place, TransferThread
from tandem.messages import PullOrder, ReadEnded, TransferNote

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the library's from Python 3.11 on


class KvReader(TransferThread):
    """See the module. All methods are thread-safe and do not wait, but start and stop."""

    def __init__(self, *, rank: int, **place: Unpack[Place]) -> None:
        """``rank``: of this process in its group.

        Raises:
            ValueError: ``block_bytes`` is not what ``rank`` holds of a block.
        """
        super().__init__(rank, **place)
        self._served = False
        self._reads: dict[str, PartRead] = {}
        self._lingering: list[PartRead] = []
        """Reported as ended, but still writing."""
        self._ended: deque[ReadEnded] = deque()

    # ------------------------------------------------------------ for the rank's main thread

    def read(self, order: PullOrder) -> None:
        """Read this rank's part of a pull. It ends in one report, or in two: a first one that says it may still
        write, and the last one."""
        part = PartRead(order.request_id, order.handle, order.block_ids, self._place["timeout_s"])
        try:
            self._command(lambda: self._begin(part))
        except TandemError as error:
            self._report(part, error)

    def abort(self, request_id: str) -> None:
        """End a read with the error ``cancelled``, unless it is over."""
        try:
            self._command(lambda: self._abort(request_id))
        except TandemError:
            return  # a transfer that has ended has ended its reads too

    def serve(self, held: bool) -> None:
        """Whether peers may be reading from this rank: over a network bytes move only while both sides look."""
        if held and not self._served:
            self._note_serving()
        self._served = held

    def ended(self) -> list[ReadEnded]:
        """The reports since the last call."""
        reports = []
        while self._ended:
            reports.append(self._ended.popleft())
        return reports

    # ------------------------------------------------------------ the transfer thread

    def _parts(self) -> Iterable[PartRead]:
        return list(itertools.chain(self._reads.values(), self._lingering))

    def _is_serving(self) -> bool:
        return self._served

    def _busy_since(self) -> float | None:
        return max((part.began for part in self._reads.values() if not part.is_near), default=None)

    def _take(self, sender: str, note: TransferNote) -> None:
        """Nobody has anything to say to a follower."""

    def _begin(self, part: PartRead) -> None:
        try:
            if part.request_id in self._reads:
                raise TandemError("invalid_request", f"request {part.request_id!r} has a read under way")
            self._prepare(part, self._find_peer(part))
            part.begin()
        except TandemError as error:
            self._report(part, error)
            return
        self._reads[part.request_id] = part

    def _advance(self) -> bool:
        busy = False
        for part in list(self._reads.values()):
            try:
                busy |= part.step()
                if part.done:
                    self._finish(part, None)
            except TandemError as error:
                self._finish(part, error)
                busy = True
        for part in list(self._lingering):
            if part.has_settled():
                self._lingering.remove(part)
                self._report(part, TandemError("transfer_failed", "the read that was given up has ended"))
        return busy

    def _abort(self, request_id: str) -> None:
        if part := self._reads.get(request_id):
            part.stop(TandemError("cancelled", f"the read for request {request_id!r} was cancelled"))

    def _finish(self, part: PartRead, error: TandemError | None) -> None:
        del self._reads[part.request_id]
        if part.is_writing:
            self._lingering.append(part)
        self._report(part, error)

    def _report(self, part: PartRead, error: TandemError | None) -> None:
        self._ended.append(
            ReadEnded(
                request_id=part.request_id,
                rank=self._rank,
                bytes_moved=part.bytes_moved,
                code=error.code if error else None,
                message=error.message if error else "",
                still_writing=part.is_writing,
            )
        )

    def _end_all(self, reason: TandemError) -> None:
        for part in list(self._reads.values()):
            self._finish(part, reason)
