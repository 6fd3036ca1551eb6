"""One request's way through both stages, and elsewhere when a worker is lost: read it from top to bottom."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from tandem.api.answer import Facts, facts_tensors, piece_tensors
from tandem.api.ask import Ask, check_ids, resolve_stopping
from tandem.api.responder import Responder
from tandem.deployment import Limits
from tandem.errors import TandemError
from tandem.messages import EngineEvent, Finished, FinishReason, Preempted, Prefilled, Pulled, Tokens
from tandem.orchestrator.admission import Demand, Ticket
from tandem.orchestrator.answer_builder import AnswerBuilder
from tandem.orchestrator.attempt import Attempt, Deadlines, Wanted
from tandem.orchestrator.fleet import Assignment, Fleet
from tandem.orchestrator.gate import Gate
from tandem.orchestrator.hedging import Hedging, race
from tandem.orchestrator.metrics import OrchestratorMetrics
from tandem.orchestrator.query import Query
from tandem.orchestrator.record import RequestRecord
from tandem.orchestrator.recovery import Recovery, find_reason
from tandem.orchestrator.timings import Part, Timings
from tandem.routing.explain import one_line
from tandem.text.codec import TextCodec
from tandem.tracing.tracer import Tracer

log = logging.getLogger(__name__)

_numbers = itertools.count()
_own_mark = secrets.token_hex(4)
"""In the ids of this orchestrator's requests: workers get those of others too."""

ReadPrompt = Callable[[Ask, int], Awaitable[list[int]]]


class Journey:
    """Runs one request. Made and run in the orchestrator's event loop."""

    def __init__(
        self,
        ask: Ask,
        responder: Responder,
        *,
        fleet: Fleet,
        gate: Gate,
        codec: TextCodec,
        read_prompt: ReadPrompt,
        limits: Limits,
        deadlines: Deadlines,
        hedging: Hedging,
        metrics: OrchestratorMetrics,
        tracer: Tracer | None = None,
        is_logged: bool = False,
    ) -> None:
        self.ask = ask
        self.responder = responder
        self._fleet, self._gate = fleet, gate
        self._codec = codec
        self._read_prompt = read_prompt
        self._limits, self._deadlines = limits, deadlines
        self._timeout_s = ask.timeout_s or limits.request_timeout_s
        self._hedging = hedging
        self._metrics = metrics
        self._id = f"{ask.request_id or 'request'}#{_own_mark}-{next(_numbers)}"
        self._timings = Timings()
        self._record = RequestRecord(ask, self._id, tracer, is_logged)
        self._step = "waiting for workers"
        self._wanted: Wanted | None = None
        self._query: Query | None = None
        self._answer: AnswerBuilder | None = None
        self._ticket: Ticket | None = None
        self._recovery = Recovery(self._id, limits.max_migrations, limits.max_queue_s)
        self._tries = itertools.count()
        self._attempts: list[Attempt] = []
        """Those under way."""
        self._current: Attempt | None = None
        self._cached: int | None = None
        self._facts = Facts(
            finish_reason="cancelled", num_input_tokens=0, num_output_tokens=0, trace_id=self._record.trace_id
        )
        self._finished = False
        self._task: asyncio.Task[None] | None = None
        self._interruption: TandemError | None = None

    # -------------------------------------------------------------- from outside

    async def run(self) -> None:
        """The whole journey; every way out of it ends the response."""
        self._record.begin()
        if self._interruption is not None:
            self._end_interrupted()
            return
        self._task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._run_out, self._timeout_s)
        try:
            await self._travel()
        except asyncio.CancelledError:
            self._end_interrupted()
        except TandemError as error:
            self._fail(error)
        except Exception as error:
            log.exception("request %s failed", self._id)
            self._fail(TandemError("engine_failed", f"internal error {self._where}: {error}"))
        finally:
            timer.cancel()
            self._let_go()
            if self._ticket is not None:
                self._gate.leave(self._ticket)

    def cancel(self) -> None:
        """The client has left, or asked for the end."""
        self.interrupt(TandemError("cancelled", "cancelled by the client"))

    def interrupt(self, reason: TandemError) -> None:
        """End the journey at its next wait; the first reason counts."""
        if self._interruption is None:
            self._interruption = reason
            if self._task is not None:
                self._task.cancel()

    # -------------------------------------------------------------- the corridor

    async def _travel(self) -> None:
        max_model_len = await self._fleet.max_model_len()
        self._gate.check(self.ask.priority, self.ask.tenant)
        await self._read(max_model_len)
        await self._be_admitted()
        while not self._finished:
            try:
                attempt = await self._choose_workers()
                attempt, events = await self._begin(attempt)
                await self._follow(attempt, events)
            except TandemError as error:
                await self._recover(error)

    async def _read(self, max_model_len: int) -> None:
        self._step = "reading the prompt"
        prompt = await self._read_prompt(self.ask, max_model_len)
        check_ids("stop_token_ids", self.ask.stop_token_ids, self._codec.vocab_size)
        stopping = resolve_stopping(
            self.ask, len(prompt), max_model_len, self._limits.default_max_tokens, self._codec.eos_token_ids
        )
        ask, traceparent = self.ask, self._record.traceparent
        self._wanted = Wanted(prompt, ask.sampling, stopping, ask.tenant, traceparent, ask.priority)
        self._answer = AnswerBuilder(self._codec, self.ask.stop_words, stopping)
        self._note(num_input_tokens=len(prompt))

    async def _be_admitted(self) -> None:
        """Wait until the workers have room; a request for which they will not have any in time is refused at once."""
        assert self._wanted is not None
        self._enter("waiting", "waiting for its turn")
        prompt, max_tokens = self._wanted.prompt, self._wanted.stopping.max_tokens
        demand = Demand(
            priority=self.ask.priority,
            tenant=self.ask.tenant,
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            blocks=self._fleet.blocks_for(len(prompt), max_tokens),
        )
        foresee = partial(self._fleet.foresee, self._ask_for())
        self._ticket = self._gate.enter(demand, self._timeout_s - self._timings.total, foresee)
        await self._gate.admitted(self._ticket)

    async def _choose_workers(self) -> Attempt:
        """A worker for each stage, or one for both. A request that goes on elsewhere waits as long as it has time."""
        assert self._ticket is not None
        self._enter("waiting", "waiting for workers")
        patience_s = math.inf if self._recovery.migrations else None
        assignment = await self._fleet.route(
            self._ask_for(), waiting=self._ticket.passed, avoid=self._recovery.avoid, patience_s=patience_s
        )
        return self._set_out(assignment)

    async def _begin(self, attempt: Attempt) -> tuple[Attempt, list[EngineEvent]]:
        """Have the prompt read, with the answer so far; a second time elsewhere if that takes too long. Returns the
        attempt that was first, with its first events."""
        self._enter("prefill")
        if attempt.is_whole:
            return attempt, await attempt.begin()
        began = time.monotonic()
        late_s = self._hedging.late_after(attempt.first_token_s)
        winner, events = await race(attempt, late_s, lambda: self._second_start(attempt))
        self._hedging.took(attempt.first_token_s, time.monotonic() - began)
        for other in self._attempts:
            if other is not winner:
                other.end()
        self._note_workers(winner)
        return winner, events

    def _second_start(self, late: Attempt) -> Attempt | None:
        """Another attempt beside one that is late, if there is a worker for it and room in the budget."""
        avoid = self._recovery.avoid | {late.first_worker}
        if not self._hedging.affordable:
            return None
        if (assignment := self._fleet.route_now(self._ask_for(), avoid)) is None:
            return None
        self._hedging.spend()
        log.info("request %s: %s is late, and it is started elsewhere too", self._id, late.first_worker)
        self._metrics.hedged()
        self._record.note("started elsewhere too", late.first_worker, "late")
        return self._set_out(assignment)

    async def _follow(self, attempt: Attempt, events: list[EngineEvent]) -> None:
        """Stay with an attempt to the end of the answer. The first token leaves for the client before decode begins."""
        while True:
            ending = self._take(events, attempt)
            if self._stopped_by_word():
                self._finish("stop")
                return
            match ending:
                case Finished(reason=reason) | Prefilled(finish_reason=reason) if reason is not None:
                    self._finish(reason)
                    return
                case Prefilled(handle=handle) if handle is not None:
                    self._send_piece()
                    await self._hand_over(attempt, handle)
                case _:
                    self._send_piece()
            events = await attempt.more()

    async def _hand_over(self, attempt: Attempt, handle: bytes) -> None:
        self._enter("transfer")
        self._note(decode_worker=attempt.decode_worker)
        await attempt.hand_over(handle, list(self._token_ids))

    async def _recover(self, error: TandemError) -> None:
        """Returns when it is time to go on elsewhere, or with an answer that is complete; raises what ends it."""
        assert self._wanted is not None
        if (reason := find_reason(self._wanted.stopping, self._token_ids)) is not None:
            self._finish(reason)
            return
        migrations = self._recovery.migrations
        back_off_s = self._recovery.next_try(error, self._wanted.prompt, len(self._token_ids))
        if self._recovery.migrations > migrations:
            self._metrics.migrated(error.code)
            self._record.note("goes on elsewhere", self._recovery.last_blamed, error.code)
        self._let_go()
        self._enter("waiting", "waiting to go on elsewhere")
        await asyncio.sleep(back_off_s)

    # -------------------------------------------------------------- its parts

    def _ask_for(self) -> Query:
        """What the next workers are asked for: to read the prompt and what was answered so far, and to go on."""
        assert self._wanted is not None
        prompt, made = self._wanted.prompt, self._token_ids
        if self._query is None or self._query.num_tokens != len(prompt) + len(made):
            left = self._wanted.stopping.max_tokens - len(made)
            self._query = self._fleet.query([*prompt, *made], left, self.ask.tenant)
        return self._query

    def _set_out(self, assignment: Assignment) -> Attempt:
        assert self._wanted is not None
        assert self._ticket is not None
        self._gate.booked(self._ticket)
        self._query = None  # as large as the prompt, and seldom needed again
        name = f"{self._id}/{next(self._tries)}"
        attempt = Attempt(name, self._wanted, list(self._token_ids), assignment, self._deadlines)
        self._attempts.append(attempt)
        why = one_line(assignment.plan)
        log.debug("request %s: %s", self._id, why)
        self._note(route=why)
        self._note_workers(attempt)
        return attempt

    def _note_workers(self, attempt: Attempt) -> None:
        self._current = attempt
        decode_worker = attempt.decode_worker if attempt.is_whole else ""  # until its turn has come
        self._note(prefill_worker=attempt.first_worker, decode_worker=decode_worker)

    def _take(self, events: list[EngineEvent], attempt: Attempt) -> Prefilled | Finished | None:
        """Take in events; returns the one that ends the stage, if it is among them."""
        ending: Prefilled | Finished | None = None
        for event in events:
            match event:
                case Tokens():
                    self._push(event)
                    if attempt.is_whole:
                        self._enter("decode")
                case Pulled():
                    self._enter("decode")
                    moved, took_ms = self._facts.kv_bytes, self._facts.kv_transfer_ms
                    self._note(kv_bytes=moved + event.bytes_moved, kv_transfer_ms=took_ms + 1e3 * event.seconds)
                case Preempted():
                    self._record.note("waits for KV blocks", attempt.holder(event), "preempted")
                case Prefilled():
                    self._timings.was_queued(event.queue_s)
                    self._note_cached(event.cached_tokens)
                    ending = event
                case Finished():
                    if attempt.is_whole:
                        self._note_cached(event.cached_tokens)
                    ending = event
        return ending

    def _push(self, tokens: Tokens) -> None:
        assert self._answer is not None
        before = self._answer.last_token_at
        new = self._answer.push(tokens)
        if new and before is None:
            ttft_s = self._timings.total
            self._note(ttft_ms=1e3 * ttft_s)
            self._metrics.first_token(ttft_s)
        elif new and before is not None and self._answer.last_token_at is not None:
            self._metrics.tokens(new, (self._answer.last_token_at - before) / new)

    def _note_cached(self, tokens: int) -> None:
        """What was cached of the prompt the first time it was read; what is read again for a migration is no usage."""
        if self._cached is None:
            self._cached = min(tokens, self._facts.num_input_tokens)
            self._note(num_cached_tokens=self._cached)

    @property
    def _token_ids(self) -> list[int]:
        return self._answer.token_ids if self._answer else []

    def _stopped_by_word(self) -> bool:
        return self._answer is not None and self._answer.stopped

    def _send_piece(self) -> None:
        if self.ask.stream and self._answer is not None and (piece := self._answer.take_piece()):
            self.responder.send(piece_tensors(piece), final=False)

    def _enter(self, part: Part, step: str | None = None) -> None:
        self._timings.enter(part)
        self._record.enter(part)
        if step is not None:
            self._step, self._current = step, None

    @property
    def _where(self) -> str:
        return self._current.step if self._current else self._step

    def _let_go(self) -> None:
        """Nobody keeps anything of this request."""
        for attempt in self._attempts:
            attempt.end()
        self._attempts.clear()

    # -------------------------------------------------------------- its ends

    def _finish(self, reason: FinishReason) -> None:
        """The final response: what is left of the answer, and the facts."""
        self._finished = True
        self._note(finish_reason=reason, num_output_tokens=len(self._token_ids))
        tensors = facts_tensors(self._facts)
        if self._answer is not None and (piece := self._answer.take_piece(final=True)):
            tensors = piece_tensors(piece) | tensors
        self.responder.send(tensors, final=True)
        seconds = self._timings.total
        tokens = self._facts.num_input_tokens, self._facts.num_cached_tokens, len(self._token_ids)
        self._metrics.finished(reason, *tokens, seconds)
        if self._wanted is not None:
            self._fleet.answered(self._wanted.stopping.max_tokens, len(self._token_ids))
        self._record.end(self._facts, seconds)

    def _end_interrupted(self) -> None:
        if self._finished:
            return
        if self._interruption is None or self._interruption.code != "cancelled":
            self._fail(self._interruption or TandemError("worker_lost", "the orchestrator is shutting down"))
        elif self._answer is not None:
            self._finish("cancelled")
        else:
            self._fail(self._interruption)

    def _fail(self, error: TandemError) -> None:
        if not self._finished:
            self._finished = True
            if error.code == "deadline_exceeded":
                made = f"{len(self._token_ids)} tokens of the answer made"
                error = TandemError(error.code, f"{error.message}, {made}; {self._timings}")
            self.responder.fail(error)
            self._metrics.failed(error.code)
            self._record.end(self._facts, self._timings.total, error)

    def _run_out(self, timeout_s: float) -> None:
        self.interrupt(TandemError("deadline_exceeded", f"timeout_s: not done after {timeout_s:g} s; {self._where}"))

    def _note(self, **facts: object) -> None:
        self._facts = msgspec.structs.replace(self._facts, **facts)
