"""The simulated worker: all that an engine does but computing, as a state machine without threads and without a clock.

Commands go in; ``advance(now)`` says what has happened until ``now``, and ``next_at`` when to call it again. The engine
behind a stage (``engine.py``) calls it by the real clock, ``tandem.simulation`` by a simulated one.

Queue, batches and blocks are those of the torch engine: the same scheduler, handles and checks. One thing is its own: a
pull waits for as long as the profile says that the bytes take, and only then is the transfer asked to do its real part.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

from tandem.deployment import Faults
from tandem.engines.counters import Counters
from tandem.engines.sim.contents import BlockContents
from tandem.engines.sim.faults import Crash, is_struck
from tandem.engines.sim.held import Held
from tandem.engines.sim.steps import LONGEST_RUN, RunningStep, begin
from tandem.engines.sim.timing import Timing, transfer_s
from tandem.engines.sim.tokens import answer_token, make_logprob
from tandem.engines.torch.checks import check_room, check_work
from tandem.engines.torch.handover import HandOver
from tandem.engines.torch.scheduler import Scheduler, Step
from tandem.engines.torch.sequence import Sequence
from tandem.errors import ErrorCode, TandemError
from tandem.kv.handle import digest_tokens
from tandem.kv.leases import LeaseTable
from tandem.kv.pull import PullResult
from tandem.kv.transfer import KvTransfer
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    FinishReason,
    KvEvent,
    Load,
    Preempted,
    Prefill,
    Prefilled,
    Pulled,
    Tokens,
    WorkerInfo,
)

LEASE_LOOK_S = 0.1
"""How long an idle worker that has granted leases waits before it looks for those that have run out."""


class SimulatedWorker:
    """See the module. Used by one thread, but for ``on_pulled``."""

    def __init__(
        self,
        info: WorkerInfo,
        timing: Timing,
        scheduler: Scheduler,
        leases: LeaseTable,
        handover: HandOver,
        transfer: KvTransfer,
        *,
        contents: BlockContents | None = None,
        faults: Faults | None = None,
        on_pulled: Callable[[], None] = lambda: None,
        coarse: bool = False,
    ) -> None:
        """``leases`` run by the same clock as ``now``; ``contents`` are what ``transfer`` moves, None if that moves
        nothing; ``on_pulled`` is called, from any thread, when a transfer has ended and it is time to ``advance``.
        ``coarse``, for speed: work is taken unchecked, decode steps between which nothing changes go as one, and all
        tokens are 0."""
        self.info, self.leases, self.handover = info, leases, handover
        self._timing, self._scheduler, self._transfer = timing, scheduler, transfer
        self._contents, self._faults, self._on_pulled = contents, faults or Faults(), on_pulled
        self._coarse = coarse
        self._pool = scheduler.pool
        scheduler.on_preempt = self._preempted
        self._in_hand: dict[str, Held] = {}
        self._unread: dict[str, Sequence] = {}
        """Of those in hand, by request id: their prompts are still to be read."""
        self._reads: dict[str, float] = {}
        """By request id: when the bytes of a pull will be there, by the profile."""
        self._pulled: deque[tuple[Held, PullResult]] = deque()
        self._step: RunningStep | None = None
        self._changed = False
        """Whether the batch may be another one after the running step."""
        self._now = 0.0
        self._taken = 0
        self._events: list[EngineEvent] = []
        self._counters = Counters()

    # ------------------------------------------------------------ in

    def submit(self, work: list[AnyWork], now: float) -> None:
        """Queue work; what cannot be done ends in a ``Failed`` event.

        Raises:
            Crash: on demand.
        """
        for one in work:
            self._taken += 1
            if self._taken == self._faults.crash_after:
                raise Crash(f"crashed on demand after {self._taken} requests (worker.faults.crash_after)")
            try:
                self._accept(one, now)
            except TandemError as error:
                self._events.append(Failed(request_id=one.request_id, code=error.code, message=error.message))

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests at once, also in the midst of a step, and end the leases granted for them."""
        self.leases.cancel(request_ids)
        for request_id in request_ids:
            held = self._in_hand.get(request_id)
            if held is None:
                continue
            if held.reading:
                held.cancelled = True  # ends when the transfer has: until then it may write to the blocks
                with contextlib.suppress(TandemError):  # a transfer that has ended has ended its pulls too
                    self._transfer.abort(request_id)
            else:
                self._finish(held.sequence, "cancelled")

    def _accept(self, work: AnyWork, now: float) -> None:
        if work.request_id in self._in_hand:
            raise TandemError("invalid_request", f"request_id: {work.request_id!r} is in hand already")
        if not self._coarse:
            check_work(work, self.info)
        sequence = Sequence.of(work, now, self.info.kv.block_size)
        check_room(sequence, self.info, self._pool.num_blocks)
        handle = self.handover.accept(work) if isinstance(work, Decode) else None
        if handle is not None:
            sequence.num_cached = handle.num_tokens  # so it will be when its turn has come
        self._in_hand[work.request_id] = Held(sequence, b"" if self._coarse else digest_tokens(work.token_ids), handle)
        if handle is None or sequence.num_uncached > 1:
            self._unread[work.request_id] = sequence
        self._changed = True
        self._scheduler.add(sequence)

    # ------------------------------------------------------------ out

    @property
    def next_at(self) -> float | None:
        """When ``advance`` has something to do; None: not before the next command, or the end of a transfer."""
        if self._faults.hang_after is not None and self._taken >= self._faults.hang_after:
            return None
        times = list(self._reads.values())
        if self._step is not None:
            times.append(self._step.ends_at)
        elif self._scheduler.queued and self.leases.held:
            times.append(self._now + LEASE_LOOK_S)
        return min(times, default=None)

    @property
    def load(self) -> Load:
        """What there is to do and to hold, after the last call."""
        return Load(
            queued=self._scheduler.queued,
            running=self._scheduler.running,
            queued_tokens=sum(s.num_unread for s in self._unread.values()),
            blocks_total=self._pool.num_blocks,
            blocks_used=self._pool.used,
            blocks_wanted=self._scheduler.blocks_wanted,
            blocks_cached=self._pool.cached,
            handles_held=self.leases.held,
            handles_granted=self.leases.granted,
            handles_expired=self.leases.expired,
            **vars(self._counters),
        )

    def take_kv_events(self) -> list[KvEvent]:
        """What the prefix cache took in and gave up since the last call."""
        return self._pool.take_changes()

    def advance(self, now: float) -> list[EngineEvent]:
        """Do what is due at ``now``, the end of one step at most, and begin what can begin: what has happened, with
        the events of commands since the last call."""
        self._now = now
        if self._faults.hang_after is None or self._taken < self._faults.hang_after:
            self.leases.expire()
            begins = self._end_step(now)
            self._read_ended()
            self._admit(now)
            self._begin_reads(now)
            self._read_ended()
            self._admit(now)  # those too to whom nothing was lent
            if self._step is None:
                self._begin_step(begins)
            elif self._changed:
                self._step.cut(now)
            self._changed = False
        events, self._events = self._events, []
        return events

    # ------------------------------------------------------------ pull

    def _admit(self, now: float) -> None:
        for sequence in self._scheduler.admit():
            moving = self._in_hand[sequence.request_id].tokens_to_move
            self._reads[sequence.request_id] = now + transfer_s(self._timing, moving)

    def _begin_reads(self, now: float) -> None:
        """Have the transfer do its part of the pulls whose bytes are there by the profile."""
        for request_id in [r for r, at in self._reads.items() if at <= now]:
            del self._reads[request_id]
            self._read(self._in_hand[request_id])

    def _read(self, held: Held) -> None:
        request_id = held.sequence.request_id
        if is_struck(request_id, "pull", self._faults.pull_share):
            what = "the pull failed on demand (worker.faults.pull_share)"
            self._pull_failed(held.sequence, TandemError("transfer_failed", what))
            return

        def on_done(result: PullResult) -> None:
            self._pulled.append((held, result))
            self._on_pulled()

        held.reading = True
        try:
            if held.sequence.awaits_kv:
                assert held.handle is not None
                self.handover.pull(held.sequence, held.handle, on_done)
            else:
                self.handover.borrow(held.sequence, on_done)
        except TandemError as error:
            held.reading = False
            self._pull_failed(held.sequence, error)

    def _read_ended(self) -> None:
        while self._pulled:
            held, result = self._pulled.popleft()
            held.reading = False
            if held.cancelled:
                self._finish(held.sequence, "cancelled")
            elif result.error is not None:
                self._pull_failed(held.sequence, result.error)
            elif self._contents is not None and not held.is_right(self._contents):
                self._fail(held.sequence, "transfer_failed", "the pulled blocks are not those of the request's tokens")
            else:
                self._note_pull(held, result)

    def _pull_failed(self, sequence: Sequence, error: TandemError) -> None:
        """Without its KV a ``Decode`` fails; what was to be borrowed is computed."""
        if sequence.awaits_kv:
            self._fail(sequence, error.code, error.message)
            return
        self._counters.borrows_failed += 1
        self._scheduler.not_lent(sequence)
        self._changed = True

    def _note_pull(self, held: Held, result: PullResult) -> None:
        sequence, moved = held.sequence, result.bytes_moved
        seconds = result.seconds + transfer_s(self._timing, held.tokens_to_move)
        self._changed = True
        if not sequence.awaits_kv:
            self._counters.borrowed(sequence.num_lent_tokens, moved, seconds)
            self._scheduler.borrowed(sequence)
            return
        self._counters.pulled(moved, seconds)
        self._events.append(Pulled(request_id=sequence.request_id, bytes_moved=moved, seconds=seconds))
        self._scheduler.pulled(sequence)

    # ------------------------------------------------------------ step

    def _begin_step(self, now: float) -> None:
        step = self._scheduler.next_step()
        if step is not None:
            self._step = begin(step, self._timing, now, LONGEST_RUN if self._coarse else 1)
            if self._step.count > 1:
                self._step.count = self._scheduler.look_ahead(step, self._step.count)

    def _preempted(self, sequence: Sequence) -> None:
        self._in_hand[sequence.request_id].num_named = 0  # they were others' blocks
        self._unread[sequence.request_id] = sequence
        self._counters.preemptions += 1
        self._events.append(Preempted(request_id=sequence.request_id))

    def _end_step(self, now: float) -> float:
        """End the running step if its time is over; the time at which the next one may begin."""
        running = self._step
        if running is None or running.ends_at > now:
            return now
        self._step = None
        if running.step.is_prefill:
            self._strike(running.step)
        step = self._without_ended(running.step)
        if not step.sequences:
            return running.ends_at
        for sequence in step.sequences if running.count > 1 else ():
            sequence.token_ids += [0] * (running.count - 1)
        seconds = running.ends_at - running.began
        self._counters.stepped(seconds, step.num_tokens if step.is_prefill else None, running.count)
        self._scheduler.stepped(step, running.began, seconds / running.count)
        for sequence in step.sequences:
            held = self._in_hand[sequence.request_id]
            if self._contents is not None:
                held.name_blocks(self._contents)
            if sequence.num_uncached == 0:
                self._take(held, step, running.count)
        return running.ends_at

    def _strike(self, step: Step) -> None:
        for sequence in self._without_ended(step).sequences:
            if is_struck(sequence.request_id, "step", self._faults.step_share):
                self._fail(sequence, "engine_failed", "the step failed on demand (worker.faults.step_share)")

    def _without_ended(self, step: Step) -> Step:
        """What is left of a step, some of whose requests may have been cancelled while it ran."""
        held = [s for s in step.sequences if (h := self._in_hand.get(s.request_id)) and h.sequence is s]
        left = step.left if held and held[-1] is step.sequences[-1] else 0
        return Step(step.is_prefill, held, left)

    def _take(self, held: Held, step: Step, count: int) -> None:
        """One sequence's new tokens, as a rule one: report them, and go on, hand over or end."""
        sequence, work = held.sequence, held.sequence.work
        index, vocab = sequence.num_output, self.info.vocab_size
        token = 0 if self._coarse else answer_token(work.sampling.seed, index, held.prompt_digest, vocab)
        top = work.sampling.logprobs
        logprobs = None if top is None else [make_logprob(token, top, vocab)] * count
        sequence.append(token)
        self._unread.pop(work.request_id, None)
        new = sequence.token_ids[-count:]
        self._events.append(
            Tokens(request_id=work.request_id, index=index + 1 - count, token_ids=new, logprobs=logprobs)
        )
        reason = sequence.finish_reason
        if isinstance(work, Prefill):
            self._hand_over(held, reason)
        elif reason:
            self._finish(sequence, reason)
        elif step.is_prefill:
            self._scheduler.prefilled(sequence)

    def _hand_over(self, held: Held, reason: FinishReason | None) -> None:
        sequence = held.sequence
        if self._contents is not None:
            held.name_all(self._contents)
        handle = None if reason else self.handover.grant(sequence)
        self._drop(sequence)
        self._events.append(
            Prefilled(
                request_id=sequence.request_id,
                handle=handle,
                finish_reason=reason,
                cached_tokens=sequence.cached_tokens,
                queue_s=sequence.queue_s,
                compute_s=sequence.compute_s,
            )
        )

    # ------------------------------------------------------------ end

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._drop(sequence)
        self._events.append(sequence.finished(reason))

    def _fail(self, sequence: Sequence, code: ErrorCode, message: str) -> None:
        self._drop(sequence)
        self._events.append(Failed(request_id=sequence.request_id, code=code, message=message))

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence, and give back its blocks unless they are under lease."""
        self._changed = True
        del self._in_hand[sequence.request_id]
        self._unread.pop(sequence.request_id, None)
        self._reads.pop(sequence.request_id, None)
        self._scheduler.remove(sequence)
        blocks, sequence.block_ids = sequence.block_ids, []
        self._pool.free(blocks)
