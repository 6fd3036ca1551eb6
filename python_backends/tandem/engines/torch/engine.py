"""The embedded engine: one thread that takes commands from an inbox, runs steps, and reports what happened.

Whatever others want is a call put into the inbox and run by that thread, so nothing here needs a lock and nobody who
calls ever waits.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from tandem.deployment import Deployment, Worker
from tandem.engines.base import Engine, EventSink, LoadingSink
from tandem.engines.counters import Counters
from tandem.engines.torch.checks import check_room, check_work
from tandem.engines.torch.handover import HandOver
from tandem.engines.torch.leader import Leader
from tandem.engines.torch.pace import Pace
from tandem.engines.torch.plan import make_plan
from tandem.engines.torch.rank import load_leader
from tandem.engines.torch.runner import ModelRunner
from tandem.engines.torch.sampler import Choice, choose
from tandem.engines.torch.scheduler import Scheduler, Step
from tandem.engines.torch.second_tier import make_tier
from tandem.engines.torch.sequence import Sequence
from tandem.errors import ErrorCode, TandemError
from tandem.keys import Keys, load_keys
from tandem.kv.handle import require_compatible
from tandem.kv.leases import LeaseTable
from tandem.kv.pull import PullResult
from tandem.kv.tiers.tier import SecondTier
from tandem.kv.transfer import KvTransfer
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    FinishReason,
    KvHandle,
    Load,
    Preempted,
    Prefill,
    Prefilled,
    Pulled,
    Tokens,
    WorkerInfo,
)
from tandem.parallel.group import RankGroup

log = logging.getLogger(__name__)

IDLE_S = 0.1
"""How long an idle engine sleeps before it looks for leases that have run out."""
HUNGRY_S = 0.002
"""The same while something waits for blocks: a lease may end, and free some, at any moment."""
STOP_TIMEOUT_S = 30.0


def create(deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> Engine:
    """Build the engine of one worker, on rank 0 of its group (an ``EngineFactory``). Takes seconds; ``loading`` hears
    of the progress.

    Raises:
        TandemError: what in deployment, environment or checkpoint is wrong.
    """
    keys = load_keys()
    group = RankGroup.current()
    info, runner, pool, leases, transfer = load_leader(deployment, worker, epoch, group, loading)
    pace = Pace(1e-3 * deployment.limits.max_inter_token_ms)
    tier = make_tier(worker, info.kv, runner.cache, pool, pace)
    scheduler = Scheduler(pool, worker.max_batch_size, worker.max_batch_tokens, pace, tier)
    return TorchEngine(info, runner, scheduler, leases, transfer, Leader(group), keys, tier)


class GroupBroken(Exception):
    """A step failed on this rank, which others may wait in for ever: the group has to be ended as a whole."""


class TorchEngine:
    """One model on one device, or on those of a group of ranks (an ``Engine``)."""

    def __init__(
        self,
        info: WorkerInfo,
        runner: ModelRunner,
        scheduler: Scheduler,
        leases: LeaseTable,
        transfer: KvTransfer,
        leader: Leader,
        keys: Keys,
        tier: SecondTier | None = None,
    ) -> None:
        """``transfer`` has been started, and moves the blocks of the scheduler's pool, which is the leases' too, in
        ``runner.cache``. ``tier`` is the scheduler's."""
        self._info, self._runner, self._scheduler = info, runner, scheduler
        self._pool, self._leases, self._transfer, self._leader = scheduler.pool, leases, transfer, leader
        self._handover = HandOver(info, leases, transfer, leader, keys)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._tier = tier
        if tier is not None:
            tier.on_read = partial(self._inbox.put, lambda: None)
        scheduler.on_preempt = self._preempted
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._in_hand: dict[str, Sequence] = {}
        """By request id: everything that was accepted and has not ended."""
        self._handles: dict[str, KvHandle] = {}
        """By request id: accepted handles whose pull has not ended."""
        self._cancelled_pulls: set[str] = set()
        self._events: list[EngineEvent] = []
        self._counters = Counters()
        self._last_load: Load | None = None

    # ------------------------------------------------------------ the protocol; called from any thread

    @property
    def info(self) -> WorkerInfo:
        """Who this worker is."""
        return self._info

    def start(self, sink: EventSink) -> None:
        """Begin to take work; every event goes to ``sink``."""
        self._sink = sink
        if self._tier is not None:
            self._tier.start()
        self._thread.start()

    def submit(self, work: list[AnyWork]) -> None:
        """Queue work; what cannot be done ends in a ``Failed`` event."""
        self._inbox.put(partial(self._accept_all, work))

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests before the next step, and end the leases they hold."""
        self._inbox.put(partial(self._cancel_all, request_ids))

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to move KV to or from ``peer``.

        Raises:
            TandemError: ``worker_incompatible``, naming in what the two differ.
        """
        require_compatible(self._info, peer)
        known = self._handover.peers.get(peer.worker_id)
        if known is None or peer.epoch >= known.epoch:
            self._transfer.pair(peer)
            self._leader.pair(peer)
            self._handover.peers[peer.worker_id] = peer

    def unpair(self, worker_id: str) -> None:
        """Forget a peer that is gone for good; an unknown one is no error."""
        if self._handover.peers.pop(worker_id, None) is not None:
            self._transfer.unpair(worker_id)
            self._leader.unpair(worker_id)

    def stop(self) -> None:
        """End all threads. Running requests are dropped."""
        self._stopping = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        self._leader.stop()
        self._transfer.stop()
        if self._tier is not None:
            self._tier.stop()

    # ------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        self._runner.use_in_this_thread()
        while not self._stopping:
            try:
                self._turn()
            except GroupBroken:
                raise  # the thread's end is the engine's
            except Exception as error:
                log.exception("the engine's loop failed")
                # What is being pulled ends by itself: until then a read may write into its blocks.
                self._fail_all([s for s in self._in_hand.values() if not self._scheduler.is_pulling(s)], error)
            self._report()

    def _turn(self) -> None:
        """Everything that was asked for meanwhile, then one step."""
        self._read_inbox()
        self._leases.expire()
        for ended in self._leader.reports():
            self._transfer.part_ended(ended)
        for sequence in self._scheduler.admit():
            self._pull(sequence)
        step = self._scheduler.next_step()
        if step is None:
            self._leader.tell(self._leases.held > 0)
            self._report()
            self._wait()
        else:
            self._run_step(step)

    def _read_inbox(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()

    def _wait(self) -> None:
        try:
            command = self._inbox.get(timeout=HUNGRY_S if self._scheduler.queued else IDLE_S)
        except queue.Empty:
            return
        command()

    def _report(self) -> None:
        """Hand over the events of this turn, and the load wherever it changed."""
        load, kv = self._load(), self._pool.take_changes()
        if self._events or kv or load != self._last_load:
            events, self._events, self._last_load = self._events, [], load
            self._sink(events, load, kv)

    def _load(self) -> Load:
        return Load(
            queued=self._scheduler.queued,
            queued_tokens=self._scheduler.queued_tokens,
            running=self._scheduler.running,
            blocks_total=self._pool.num_blocks,
            blocks_used=self._pool.used,
            blocks_wanted=self._scheduler.blocks_wanted,
            blocks_cached=self._pool.cached,
            handles_held=self._leases.held,
            handles_granted=self._leases.granted,
            handles_expired=self._leases.expired,
            collective_seconds=self._runner.ranks.seconds,
            tier=self._tier.load if self._tier else None,
            **vars(self._counters),
        )

    # ------------------------------------------------------------ accept

    def _accept_all(self, work: list[AnyWork]) -> None:
        for one in work:
            try:
                self._accept(one)
            except TandemError as error:
                self._events.append(Failed(request_id=one.request_id, code=error.code, message=error.message))

    def _accept(self, work: AnyWork) -> None:
        if work.request_id in self._in_hand:
            raise TandemError("invalid_request", f"request_id: {work.request_id!r} is in hand already")
        check_work(work, self._info)
        sequence = Sequence.of(work, time.monotonic(), self._info.kv.block_size)
        check_room(sequence, self._info, self._pool.num_blocks)
        if isinstance(work, Decode):
            handle = self._handover.accept(work)
            self._handles[work.request_id] = handle
            sequence.num_cached = handle.num_tokens  # so it will be when its turn has come
        self._in_hand[work.request_id] = sequence
        self._scheduler.add(sequence)

    # ------------------------------------------------------------ pull

    def _pull(self, sequence: Sequence) -> None:
        def on_done(result: PullResult) -> None:
            self._inbox.put(partial(self._pulled, sequence, result))

        try:
            if sequence.awaits_kv:
                self._handover.pull(sequence, self._handles[sequence.request_id], on_done)
            else:
                self._handover.borrow(sequence, on_done)
        except TandemError as error:
            self._pull_failed(sequence, error)

    def _pulled(self, sequence: Sequence, result: PullResult) -> None:
        """A pull has ended, and with it whatever may write into the sequence's blocks."""
        if sequence.request_id in self._cancelled_pulls:
            self._finish(sequence, "cancelled")
        elif result.error is not None:
            self._leader.abort(sequence.request_id)  # what followers still read is of no use
            self._pull_failed(sequence, result.error)
        elif not sequence.awaits_kv:
            self._counters.borrowed(sequence.num_lent_tokens, result.bytes_moved, result.seconds)
            self._scheduler.borrowed(sequence)
        else:
            del self._handles[sequence.request_id]
            self._counters.pulled(result.bytes_moved, result.seconds)
            self._events.append(
                Pulled(request_id=sequence.request_id, bytes_moved=result.bytes_moved, seconds=result.seconds)
            )
            self._scheduler.pulled(sequence)

    def _pull_failed(self, sequence: Sequence, error: TandemError) -> None:
        """Without its KV a ``Decode`` fails; what was to be borrowed is computed."""
        if sequence.awaits_kv:
            self._fail(sequence, error.code, error.message)
            return
        log.debug("request %s borrows nothing: %s", sequence.request_id, error)
        self._counters.borrows_failed += 1
        self._scheduler.not_lent(sequence)

    # ------------------------------------------------------------ step

    def _preempted(self, sequence: Sequence) -> None:
        self._counters.preemptions += 1
        self._events.append(Preempted(request_id=sequence.request_id))

    def _run_step(self, step: Step) -> None:
        began = time.monotonic()
        sequences, plan = make_plan(step, self._info.kv.block_size)
        self._leader.tell(self._leases.held > 0, plan)
        try:
            logits = self._runner.run(plan)
            assert logits is not None  # this is the leader
            chosen = choose(logits, sequences)
        except ArithmeticError as error:
            self._fail_all(step.sequences, error)
            return
        except Exception as error:
            if not self._leader.is_alone:
                raise GroupBroken(f"a step of {len(step.sequences)} sequences failed on rank 0") from error
            log.exception("a step of %d sequences failed", len(step.sequences))
            self._fail_all(step.sequences, error)
            return
        seconds = time.monotonic() - began
        self._counters.stepped(seconds, step.num_tokens if step.is_prefill else None)
        self._scheduler.stepped(step, began, seconds)
        for sequence, choice in zip(sequences, chosen, strict=True):
            self._take(sequence, choice, step)

    def _take(self, sequence: Sequence, choice: Choice, step: Step) -> None:
        """One sequence's new token: report it, and go on, hand over or end."""
        index = sequence.num_output
        sequence.append(choice.token_id)
        logprobs = None if choice.logprob is None else [choice.logprob]
        self._events.append(
            Tokens(request_id=sequence.request_id, index=index, token_ids=[choice.token_id], logprobs=logprobs)
        )
        reason = sequence.finish_reason
        if isinstance(sequence.work, Prefill):
            handle = None if reason else self._handover.grant(sequence)
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
        elif reason:
            self._finish(sequence, reason)
        elif step.is_prefill:
            self._scheduler.prefilled(sequence)

    # ------------------------------------------------------------ end

    def _cancel_all(self, request_ids: list[str]) -> None:
        self._leases.cancel(request_ids)
        for request_id in request_ids:
            sequence = self._in_hand.get(request_id)
            if sequence is None:
                continue
            if self._scheduler.is_pulling(sequence):
                self._cancelled_pulls.add(request_id)  # ends in ``_pulled``: until then a read may write to its blocks
                with contextlib.suppress(TandemError):  # a transfer that has ended has ended its pulls too
                    self._transfer.abort(request_id)
                self._leader.abort(request_id)
            else:
                self._finish(sequence, "cancelled")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._drop(sequence)
        self._events.append(sequence.finished(reason))

    def _fail(self, sequence: Sequence, code: ErrorCode, message: str) -> None:
        self._drop(sequence)
        self._events.append(Failed(request_id=sequence.request_id, code=code, message=message))

    def _fail_all(self, sequences: list[Sequence], error: Exception) -> None:
        message = f"a step of the engine on worker {self._info.worker_id!r} failed: {type(error).__name__}: {error}"
        for sequence in sequences:
            self._fail(sequence, "engine_failed", message)

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence, and give back its blocks unless they are under lease."""
        del self._in_hand[sequence.request_id]
        self._handles.pop(sequence.request_id, None)
        self._cancelled_pulls.discard(sequence.request_id)
        self._scheduler.remove(sequence)
        blocks, sequence.block_ids = sequence.block_ids, []
        self._pool.free(blocks)
