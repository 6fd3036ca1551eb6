"""What runs next. First come, first served.

waiting ──► pulling ──► running      (``Decode``: its KV comes from elsewhere)
   ├──► pulling ──► prefilling       (others whose beginning another worker lends)
   ├──────► prefilling ──► running   (``Generate``; a ``Prefill`` ends after its last prefill step)
   ├──► loading ──┘           │      (some of its blocks come from the second tier)
   └◄── preempted ◄───────────┘      (no block was free for one that goes first: ``preemption.py``)

A prompt that is too long for one step is read in several; between two of them those who write have their turn.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tandem.engines.torch.pace import Pace
from tandem.engines.torch.preemption import PreemptedQueue, find_last, rank, reserve
from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import OutOfBlocks
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.tiers.read import TierRead
from tandem.kv.tiers.tier import SecondTier
from tandem.messages import Generate


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
        self.on_preempt: Callable[[Sequence], None] = lambda _sequence: None
        """Called with whoever has given way."""
        self._numbers = itertools.count()
        self._waiting: deque[Sequence] = deque()
        self._preempted = PreemptedQueue()
        self._pulling: dict[str, Sequence] = {}
        self._loading: dict[Sequence, TierRead] = {}
        self._prefilling: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._stalled: list[Sequence] = []
        """Of those running, whoever the last step left out for want of a block."""
        self._prefilled_last = False

    @property
    def queued(self) -> int:
        """Sequences that no step can take yet."""
        waiting = len(self._waiting) + len(self._preempted) + len(self._pulling) + len(self._loading)
        return waiting + len(self._running) - self._decoding

    @property
    def queued_tokens(self) -> int:
        """Tokens that steps have to read, or to read anew, of whoever waits or is being read."""
        unread = sum(s.num_uncached for s in (*self._loading, *self._prefilling)) + self._preempted.num_tokens
        return unread + sum(s.num_unread for s in (*self._waiting, *self._pulling.values()) if not s.awaits_kv)

    @property
    def running(self) -> int:
        """Sequences that steps take."""
        return len(self._prefilling) + self._decoding

    @property
    def _decoding(self) -> int:
        return min(len(self._running) - len(self._stalled), self._max_batch_size)

    @property
    def blocks_wanted(self) -> int:
        """What those who hold blocks may come to take beyond them."""
        return sum(s.blocks_needed - len(s.block_ids) for s in self._holders)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        sequence.number = next(self._numbers)
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Take sequences from the queue while there is room for them; returns those whose KV must be pulled now."""
        self._end_loads()
        pulls = []
        while (sequence := self._first_waiting()) is not None and self._may_start(sequence) and self._start(sequence):
            self._unqueue(sequence)
            if sequence.awaits_kv or sequence.borrows:
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

    def borrowed(self, sequence: Sequence) -> None:
        """What another worker lends to a pulling sequence is there."""
        del self._pulling[sequence.request_id]
        sequence.num_shared, sequence.lender = sequence.num_lent, None
        sequence.num_cached = sequence.shared_tokens
        self.keep(sequence)
        self._prefilling.append(sequence)

    def not_lent(self, sequence: Sequence) -> None:
        """Nothing comes of that: the sequence is the first to start again, with other blocks, as something may still
        write to these."""
        del self._pulling[sequence.request_id]
        self.pool.free(sequence.let_go())
        self._waiting.appendleft(sequence)

    def next_step(self) -> Step | None:
        """What to run now, or None. Prefill first, but never twice in a row while others wait to decode. Those who
        decode get the blocks for it; for want of them others are preempted."""
        self._stalled = []
        if not self._prefilling or (self._prefilled_last and self._running):
            self._prefilled_last = False
            if batch := self._decode_batch():
                return Step(False, batch)
        if self._prefilling:
            self._prefilled_last = True
            return self._prefill_step()
        return None

    def look_ahead(self, step: Step, most: int) -> int:
        """Take blocks for up to ``most`` decode steps of the same sequences, one after the other, as far as some are
        free and nobody else waits for a step; returns for how many."""
        count = 1 if self._prefilling else most
        while count > 1 and sum(_missing(s, count - 1) for s in step.sequences) > self.pool.free_count:
            count //= 2
        for sequence in step.sequences:
            sequence.block_ids += self.pool.allocate(_missing(sequence, count - 1))
        return count

    def stepped(self, step: Step, began: float, seconds: float) -> None:
        """A step was run: all that it read has its KV in the blocks, which others may share from now on."""
        if step.is_prefill:
            self._pace.prefilled(step.num_tokens, seconds)
        else:
            self._pace.decoded(seconds)
        for sequence in step.sequences:
            if step.is_prefill:
                sequence.queue_s = sequence.queue_s or began - sequence.arrived
                if sequence.num_output == len(sequence.work.output_ids):
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
        self._preempted.remove(sequence)
        for place in (self._waiting, self._prefilling, self._running, self._stalled):
            if sequence in place:
                place.remove(sequence)

    @property
    def _holders(self) -> list[Sequence]:
        return [*self._pulling.values(), *self._loading, *self._prefilling, *self._running]

    def _first_waiting(self) -> Sequence | None:
        """Who starts next: nobody passes it by, whatever keeps it waiting."""
        waiting = self._waiting[0] if self._waiting else None
        return self._preempted.before(waiting) or waiting

    def _unqueue(self, sequence: Sequence) -> None:
        if sequence.preemptions:
            self._preempted.remove(sequence)
        else:
            self._waiting.popleft()

    def _may_start(self, sequence: Sequence) -> bool:
        if sequence.awaits_kv or sequence.borrows:
            return True  # pull as early as there is memory, even if no step has room yet: leases run
        if isinstance(sequence.work, Generate) and self.running + len(self._loading) >= self._max_batch_size:
            return False
        return sum(s.num_uncached for s in self._prefilling) < self._max_batch_tokens

    def _start(self, sequence: Sequence) -> bool:
        """Take blocks for its tokens, if that leaves room for what all will write next."""
        most_cached = (len(sequence.token_ids) - 1) // sequence.block_size
        if sequence.awaits_kv:
            # A lease ends with a read of at least one block, which must be the sequence's own.
            most_cached = -(-sequence.num_cached // sequence.block_size) - 1
        now = sequence.blocks_for(0)
        leave = reserve([*self._holders, sequence]) - now
        try:
            taken = self.pool.reserve(sequence.chain, now, most_cached, leave)
        except OutOfBlocks:
            return False
        sequence.block_ids, sequence.num_shared = taken
        sequence.num_stored = sequence.num_shared
        if not sequence.awaits_kv:
            sequence.num_cached = sequence.shared_tokens
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
            sequence.num_cached = sequence.shared_tokens
            self.keep(sequence)
            self._prefilling.append(sequence)

    def _decode_batch(self) -> list[Sequence]:
        """Those who decode next, each with a block for its last token. Who gets none is left out, and waits."""
        while batch := [s for s in self._running if s not in self._stalled][: self._max_batch_size]:
            for sequence in sorted((s for s in batch if _missing(s)), key=rank):
                self._grow(sequence)
            batch = [s for s in batch if s.block_ids]  # those who gave way are gone
            self._stalled += [s for s in batch if _missing(s)]
            if ready := [s for s in batch if not _missing(s)]:
                return ready
        return []

    def _grow(self, sequence: Sequence) -> None:
        """Give a sequence the blocks that it lacks, of those who go after it if need be."""
        while sequence.block_ids and (missing := _missing(sequence)):
            try:
                sequence.block_ids += self.pool.allocate(missing)
            except OutOfBlocks:
                holders = [*self._loading, *self._prefilling, *self._running]
                if (last := find_last(holders, self._pulling.values(), sequence)) is None:
                    return
                self.remove(last)
                self.pool.free(last.give_up())
                self._preempted.add(last)
                self.on_preempt(last)

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


def _missing(sequence: Sequence, ahead: int = 0) -> int:
    """Blocks that a sequence lacks for its tokens and the next ``ahead``."""
    return max(0, sequence.blocks_for(ahead) - len(sequence.block_ids))
