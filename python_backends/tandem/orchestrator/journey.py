"""One request's way through both stages: read it from top to bottom."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec

from tandem.api.answer import Facts, facts_tensors, piece_tensors
from tandem.api.ask import Ask, check_ids, resolve_stopping
from tandem.api.responder import Responder
from tandem.deployment import Limits
from tandem.errors import TandemError
from tandem.lanes.client import LaneClient, Mailbox
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Prefill,
    Prefilled,
    Pulled,
    StageName,
    Stopping,
    Tokens,
)
from tandem.orchestrator.answer_builder import AnswerBuilder
from tandem.orchestrator.fleet import Fleet
from tandem.orchestrator.metrics import OrchestratorMetrics
from tandem.routing.explain import one_line
from tandem.routing.router import Route
from tandem.text.codec import TextCodec

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
        codec: TextCodec,
        read_prompt: ReadPrompt,
        limits: Limits,
        metrics: OrchestratorMetrics,
    ) -> None:
        self.ask = ask
        self.responder = responder
        self._fleet = fleet
        self._codec = codec
        self._read_prompt = read_prompt
        self._limits = limits
        self._metrics = metrics
        self._id = f"{ask.request_id or 'request'}#{_own_mark}-{next(_numbers)}"
        self._started = time.monotonic()
        self._step = "waiting to start"
        self._prompt: list[int] = []
        self._answer: AnswerBuilder | None = None
        self._route: Route | None = None
        self._held_by: list[LaneClient] = []
        self._facts = Facts(finish_reason="cancelled", num_input_tokens=0, num_output_tokens=0)
        self._finished = False
        self._task: asyncio.Task[None] | None = None
        self._interruption: TandemError | None = None

    # -------------------------------------------------------------- from outside

    async def run(self) -> None:
        """The whole journey; every way out of it ends the response."""
        if self._interruption is not None:
            self._end_interrupted()
            return
        self._task = asyncio.current_task()
        timeout_s = self.ask.timeout_s or self._limits.request_timeout_s
        timer = asyncio.get_running_loop().call_later(timeout_s, self._run_out, timeout_s)
        try:
            await self._travel()
        except asyncio.CancelledError:
            self._end_interrupted()
        except TandemError as error:
            self._fail(error)
        except Exception as error:
            log.exception("request %s failed", self._id)
            self._fail(TandemError("engine_failed", f"internal error while {self._step}: {error}"))
        finally:
            timer.cancel()
            if self._route is not None:
                self._route.end()
            for lane in self._held_by:
                lane.cancel(self._id)
                lane.close(self._id)

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
        self._step = "waiting for workers"
        max_model_len = await self._fleet.max_model_len()
        stopping = await self._read(max_model_len)
        prefill, decode = await self._choose_workers(stopping)
        if prefill is None:
            await self._generate(decode, stopping)
        elif (handle := await self._prefill(prefill, stopping)) is not None:
            await self._decode(decode, stopping, handle)

    async def _read(self, max_model_len: int) -> Stopping:
        self._step = "reading the prompt"
        self._prompt = await self._read_prompt(self.ask, max_model_len)
        check_ids("stop_token_ids", self.ask.stop_token_ids, self._codec.vocab_size)
        stopping = resolve_stopping(
            self.ask,
            len(self._prompt),
            max_model_len,
            self._limits.default_max_tokens,
            self._codec.eos_token_ids,
        )
        self._answer = AnswerBuilder(self._codec, self.ask.stop_words, stopping)
        self._note(num_input_tokens=len(self._prompt))
        return stopping

    async def _choose_workers(self, stopping: Stopping) -> tuple[LaneClient | None, LaneClient]:
        """A worker for each stage, or None and one for both."""
        self._step = "waiting for workers"
        prefill, decode, self._route, plan = await self._fleet.route(self._prompt, stopping.max_tokens)
        why = one_line(plan)
        log.debug("request %s: %s", self._id, why)
        self._note(route=why)
        return prefill, decode

    async def _prefill(self, lane: LaneClient, stopping: Stopping) -> bytes | None:
        """The first token leaves for the client; returns the KV handle, or None when the answer is over."""
        self._step = f"in prefill on {lane.worker.name}"
        work = Prefill(request_id=self._id, token_ids=self._prompt, sampling=self.ask.sampling, stopping=stopping)
        self._note(prefill_worker=lane.worker.name)
        mailbox = await self._submit("prefill", lane, work)
        while True:
            prefilled = self._take(await mailbox.take(), Prefilled)
            if prefilled is not None:
                break
        assert isinstance(prefilled, Prefilled)
        lane.close(self._id)
        self._note(num_cached_tokens=prefilled.cached_tokens)
        if prefilled.finish_reason is not None:
            self._held_by.remove(lane)
            self._finish("stop" if self._stopped_by_word() else prefilled.finish_reason)
        elif self._stopped_by_word():
            self._finish("stop")  # the unused handle is given up on the way out
        else:
            self._send_piece()
        return None if self._finished else prefilled.handle

    async def _decode(self, lane: LaneClient, stopping: Stopping, handle: bytes) -> None:
        """Decode redeems the handle and goes on from the second token to the end."""
        self._step = f"in decode on {lane.worker.name}"
        assert self._answer is not None
        work = Decode(
            request_id=self._id,
            token_ids=self._prompt,
            output_ids=list(self._answer.token_ids),
            sampling=self.ask.sampling,
            stopping=stopping,
            handle=handle,
        )
        self._note(decode_worker=lane.worker.name)
        await self._follow(lane, work)

    async def _generate(self, lane: LaneClient, stopping: Stopping) -> None:
        """One worker does both stages."""
        self._step = f"in both stages on {lane.worker.name}"
        work = Generate(request_id=self._id, token_ids=self._prompt, sampling=self.ask.sampling, stopping=stopping)
        self._note(prefill_worker=lane.worker.name, decode_worker=lane.worker.name)
        await self._follow(lane, work)

    async def _follow(self, lane: LaneClient, work: Decode | Generate) -> None:
        """Hand over the last work of the request, and stay with it to the end."""
        mailbox = await self._submit("decode", lane, work)
        while not self._finished:
            finished = self._take(await mailbox.take(), Finished)
            if self._stopped_by_word():
                self._finish("stop")
            elif isinstance(finished, Finished):
                if isinstance(work, Generate):
                    self._note(num_cached_tokens=finished.cached_tokens)
                self._held_by.remove(lane)
                lane.close(self._id)
                self._finish(finished.reason)
            else:
                self._send_piece()

    # -------------------------------------------------------------- its parts

    async def _submit(self, stage: StageName, lane: LaneClient, work: AnyWork) -> Mailbox:
        self._held_by.append(lane)
        mailbox = await lane.submit(work)
        if self._route is not None:
            self._route.sent(stage)
        return mailbox

    def _take(self, events: list[EngineEvent], last: type[Prefilled] | type[Finished]) -> Prefilled | Finished | None:
        """Take in events; returns the one that ends the stage, if it is among them."""
        ending: Prefilled | Finished | None = None
        for event in events:
            match event:
                case Tokens():
                    self._push(event)
                case Pulled():
                    self._note(kv_bytes=event.bytes_moved, kv_transfer_ms=1e3 * event.seconds)
                    self._release_prefill()
                case Failed():
                    raise TandemError(event.code, f"{event.message} ({self._step})")
                case Prefilled() | Finished():
                    ending = event
        if ending is not None and not isinstance(ending, last):
            raise TandemError("cancelled", f"the worker stopped the request ({self._step})")
        return ending

    def _push(self, tokens: Tokens) -> None:
        assert self._answer is not None
        before = self._answer.last_token_at
        new = self._answer.push(tokens)
        if new and before is None:
            ttft_s = time.monotonic() - self._started
            self._note(ttft_ms=1e3 * ttft_s)
            if self._route is not None:
                self._route.first_token()
            self._metrics.first_token(ttft_s)
        elif new and before is not None and self._answer.last_token_at is not None:
            self._metrics.tokens(new, (self._answer.last_token_at - before) / new)

    def _release_prefill(self) -> None:
        """Decode has the KV: nothing of this request is left on the prefill worker."""
        self._held_by = self._held_by[1:]
        if self._route is not None:
            self._route.released()

    def _stopped_by_word(self) -> bool:
        return self._answer is not None and self._answer.stopped

    def _send_piece(self) -> None:
        if self.ask.stream and self._answer is not None and (piece := self._answer.take_piece()):
            self.responder.send(piece_tensors(piece), final=False)

    # -------------------------------------------------------------- its ends

    def _finish(self, reason: FinishReason) -> None:
        """The final response: what is left of the answer, and the facts."""
        self._finished = True
        tokens = self._answer.token_ids if self._answer else []
        self._note(finish_reason=reason, num_output_tokens=len(tokens))
        tensors = facts_tensors(self._facts)
        if self._answer is not None and (piece := self._answer.take_piece(final=True)):
            tensors = piece_tensors(piece) | tensors
        self.responder.send(tensors, final=True)
        self._metrics.finished(reason, len(self._prompt), len(tokens), time.monotonic() - self._started)

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
            self.responder.fail(error)
            self._metrics.failed(error.code)

    def _run_out(self, timeout_s: float) -> None:
        got = len(self._answer.token_ids) if self._answer else 0
        self.interrupt(
            TandemError(
                "deadline_exceeded",
                f"timeout_s: not done after {timeout_s:g} s; {self._step}, {got} tokens of the answer made",
            )
        )

    def _note(self, **facts: object) -> None:
        self._facts = msgspec.structs.replace(self._facts, **facts)
