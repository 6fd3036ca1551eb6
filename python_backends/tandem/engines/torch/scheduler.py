"""What runs next. First come, first served; whoever starts has all the blocks it can need, so nobody is put back.

waiting ──► pulling ──► running      (``Decode``: its KV comes from elsewhere)
   ├──────► prefilling ──► running   (``Generate``; a ``Prefill`` ends after its last prefill step)
   └──► loading ──┘                  (some of its blocks come from the second tier)

A prompt that is too long for one step is read in several; between two of them those who write have their turn.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from tandem.engines.torch.pace import Pace
from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import OutOfBlocks
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.tiers.read import TierRead
from tandem.kv.tiers.tier import SecondTier
from tandem.messages import Decode, Prefill


@dataclass(frozen=True)
class Step:
    """Sequences that go through the model together: their new tokens (prefill), or their last one (decode)."""

    is_prefill: bool
    sequences: list[Sequence]
    left: int = 0
    """Tokens of the last sequence that later steps read; where there are some, this one makes no token of it."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step reads."""
        return sum(s.num_uncached for s in self.sequences) - self.left


class Scheduler:
    """The queue and the running set. Used by one thread; only the pool is shared."""

    def __init__(
        self,
        pool: PrefixCache,
        max_batch_size: int,
        max_batch_tokens: int,
        pace: Pace,
        tier: SecondTier | None = None,
    ) -> None:
        self.pool, self._pace, self._tier = pool, pace, tier
        self._max_batch_size, self._max_batch_tokens = max_batch_size, max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._pulling: dict[str, Sequence] = {}
        self._loading: dict[Sequence, TierRead] = {}
        self._prefilling: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._prefilled_last = False

    @property
    def queued(self) -> int:
        """Sequences that no step can take yet."""
        loading = len(self._pulling) + len(self._loading)
        return len(self._waiting) + loading + max(0, len(self._running) - self._max_batch_size)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that no step has read, of whoever waits or is being read."""
        return sum(s.num_uncached for s in self._waiting if not isinstance(s.work, Decode)) + sum(
            s.num_uncached for s in (*self._loading, *self._prefilling)
        )

    @property
    def running(self) -> int:
        """Sequences that steps take."""
        return len(self._prefilling) + min(len(self._running), self._max_batch_size)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Take sequences from the queue while there is room for them; returns those whose KV must be pulled now."""
        self._end_loads()
        pulls = []
        while self._waiting and self._may_start(self._waiting[0]) and self._reserve(self._waiting[0]):
            sequence = self._waiting.popleft()
            if isinstance(sequence.work, Decode):
                self._pulling[sequence.request_id] = sequence
                pulls.append(sequence)
            elif (read := self._begin_load(sequence)) is not None:
                self._loading[sequence] = read
            else:
                self._prefilling.append(sequence)
        return pulls

    def is_pulling(self, sequence: Sequence) -> bool:
        """Whether its KV is on the way."""
        return self._pulling.get(sequence.request_id) is sequence

    def pulled(self, sequence: Sequence) -> None:
        """The KV of a pulling sequence is there; what the handle did not cover still has to be read."""
        del self._pulling[sequence.request_id]
        self.keep(sequence)
        (self._running if sequence.num_uncached == 1 else self._prefilling).append(sequence)

    def next_step(self) -> Step | None:
        """What to run now, or None. Prefill first, but never twice in a row while others wait to decode."""
        if self._prefilling and not (self._prefilled_last and self._running):
            self._prefilled_last = True
            return self._prefill_step()
        self._prefilled_last = False
        if self._running:
            return Step(False, self._running[: self._max_batch_size])
        return None

    def stepped(self, step: Step, began: float, seconds: float) -> None:
        """A step was run: all that it read has its KV in the blocks, which others may share from now on."""
        if step.is_prefill:
            self._pace.prefilled(step.num_tokens, seconds)
        else:
            self._pace.decoded(seconds)
        for sequence in step.sequences:
            if step.is_prefill:
                sequence.queue_s = sequence.queue_s or began - sequence.arrived
                sequence.compute_s += seconds
            left = step.left if sequence is step.sequences[-1] else 0
            sequence.num_cached = len(sequence.token_ids) - left
            self.keep(sequence)

    def prefilled(self, sequence: Sequence) -> None:
        """A prefill step made this sequence's first token and it goes on here."""
        self._running.append(sequence)

    def keep(self, sequence: Sequence) -> None:
        """Let others share the blocks of a sequence whose KV is complete."""
        whole = sequence.num_cached // sequence.block_size
        if whole > sequence.num_stored:
            self.pool.store(sequence.chain, sequence.block_ids, sequence.num_stored, whole)
            sequence.num_stored = whole

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its blocks are the caller's."""
        if self.is_pulling(sequence):
            del self._pulling[sequence.request_id]
        if (read := self._loading.pop(sequence, None)) is not None:
            read.close()  # nothing writes into its blocks any more
        for place in (self._waiting, self._prefilling, self._running):
            if sequence in place:
                place.remove(sequence)

    def _may_start(self, sequence: Sequence) -> bool:
        if isinstance(sequence.work, Decode):
            return True  # its lease runs: pull as early as there is memory, even if no step has room yet
        if not isinstance(sequence.work, Prefill) and self.running + len(self._loading) >= self._max_batch_size:
            return False
        return sum(s.num_uncached for s in self._prefilling) < self._max_batch_tokens

    def _reserve(self, sequence: Sequence) -> bool:
        """Take all blocks that it can need, if there is room for it."""
        most_cached = (len(sequence.token_ids) - 1) // sequence.block_size
        if isinstance(sequence.work, Decode):
            # A lease ends with a read of at least one block, which must be the sequence's own.
            most_cached = -(-sequence.num_cached // sequence.block_size) - 1
        try:
            taken = self.pool.reserve(sequence.chain, sequence.blocks_needed, most_cached)
        except OutOfBlocks:
            return False
        sequence.block_ids, sequence.num_shared = taken
        sequence.num_stored = sequence.num_shared
        if not isinstance(sequence.work, Decode):
            sequence.num_cached = sequence.cached_tokens
        return True

    def _begin_load(self, sequence: Sequence) -> TierRead | None:
        """Have blocks read from the second tier that follow on those in memory; at least one token is left to read."""
        if self._tier is None:
            return None
        end = (len(sequence.token_ids) - 1) // sequence.block_size
        return self._tier.begin_read(sequence.chain, sequence.block_ids, sequence.num_shared, end)

    def _end_loads(self) -> None:
        """Go on with what has come, in time; the rest is computed."""
        if self._tier is None or not self._loading:
            return
        now = time.monotonic()
        for sequence, read in [(s, r) for s, r in self._loading.items() if r.is_over(now)]:
            del self._loading[sequence]
            arrived = read.close()
            self._tier.read_ended(read, arrived)
            sequence.num_shared += arrived
            sequence.num_cached = sequence.cached_tokens
            self.keep(sequence)
            self._prefilling.append(sequence)

    def _prefill_step(self) -> Step:
        """As many of the first prompts as fit, of the last one what fits. A prompt that is cut stays where it is."""
        room = self._max_batch_tokens
        if self._running:
            room = min(room, self._pace.chunk)
        taken: list[Sequence] = []
        while self._prefilling and room > 0:
            sequence = self._prefilling[0]
            taken.append(sequence)
            room -= sequence.num_uncached
            if room >= 0:
                self._prefilling.popleft()
        return Step(True, taken, left=max(0, -room))
