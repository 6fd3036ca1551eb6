"""What runs next. First come, first served; whoever starts has all the blocks it can need, so nobody is put back.

waiting ──► pulling ──► running      (``Decode``: its KV comes from elsewhere)
   └──────► prefilling ──► running   (``Generate``; a ``Prefill`` ends after its prefill step)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import BlockPool
from tandem.messages import Decode, Prefill


@dataclass(frozen=True)
class Step:
    """Sequences that go through the model together: their new tokens (prefill), or their last one (decode)."""

    is_prefill: bool
    sequences: list[Sequence]


class Scheduler:
    """The queue and the running set. Used by one thread; only the pool is shared."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        max_batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self._pool, self._block_size = pool, block_size
        self._max_batch_size, self._max_batch_tokens = max_batch_size, max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._pulling: dict[str, Sequence] = {}
        self._prefilling: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._prefilled_last = False

    @property
    def queued(self) -> int:
        """Sequences that no step can take yet."""
        return len(self._waiting) + len(self._pulling) + max(0, len(self._running) - self._max_batch_size)

    @property
    def running(self) -> int:
        """Sequences that steps take."""
        return len(self._prefilling) + min(len(self._running), self._max_batch_size)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Take sequences from the queue while there is room for them; returns those whose KV must be pulled now."""
        pulls = []
        while self._waiting and self._can_start(self._waiting[0]):
            sequence = self._waiting.popleft()
            sequence.block_ids = self._pool.allocate(sequence.blocks_needed(self._block_size))
            if isinstance(sequence.work, Decode):
                self._pulling[sequence.request_id] = sequence
                pulls.append(sequence)
            else:
                self._prefilling.append(sequence)
        return pulls

    def is_pulling(self, sequence: Sequence) -> bool:
        """Whether its KV is on the way."""
        return self._pulling.get(sequence.request_id) is sequence

    def pulled(self, sequence: Sequence) -> None:
        """The KV of a pulling sequence is there; what the handle did not cover still has to be read."""
        del self._pulling[sequence.request_id]
        (self._running if sequence.num_uncached == 1 else self._prefilling).append(sequence)

    def next_step(self) -> Step | None:
        """What to run now, or None. Prefill first, but never twice in a row while others wait to decode."""
        if self._prefilling and not (self._prefilled_last and self._running):
            self._prefilled_last = True
            return Step(True, self._take_prefills())
        self._prefilled_last = False
        if self._running:
            return Step(False, self._running[: self._max_batch_size])
        return None

    def prefilled(self, sequence: Sequence) -> None:
        """A prefill step made this sequence's first token and it goes on here."""
        self._running.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its blocks are the caller's."""
        if self.is_pulling(sequence):
            del self._pulling[sequence.request_id]
        for place in (self._waiting, self._prefilling, self._running):
            if sequence in place:
                place.remove(sequence)

    def _can_start(self, sequence: Sequence) -> bool:
        if not self._pool.can_allocate(sequence.blocks_needed(self._block_size)):
            return False
        if isinstance(sequence.work, Decode):
            return True  # its lease runs: pull as early as there is memory, even if no step has room yet
        if not isinstance(sequence.work, Prefill) and self.running >= self._max_batch_size:
            return False
        return self._fits_prefill(sequence, self._prefilling)

    def _fits_prefill(self, sequence: Sequence, others: deque[Sequence] | list[Sequence]) -> bool:
        tokens = sum(s.num_uncached for s in others) + sequence.num_uncached
        return not others or tokens <= self._max_batch_tokens

    def _take_prefills(self) -> list[Sequence]:
        taken: list[Sequence] = []
        while self._prefilling and self._fits_prefill(self._prefilling[0], taken):
            taken.append(self._prefilling.popleft())
        return taken
