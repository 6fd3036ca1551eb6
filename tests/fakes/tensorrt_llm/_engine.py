"""The engine behind the fake: one thread that goes from step to step, as PyExecutor's loop does."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from dataclasses import replace
from threading import Condition, Thread
from typing import Any

from tensorrt_llm._blocks import Blocks
from tensorrt_llm._faults import Faults
from tensorrt_llm._requests import DisaggregatedParams
from tensorrt_llm._results import IterationResult, Logprob, Response
from tensorrt_llm._sequence import Sequence, Stage
from tensorrt_llm._settings import number, version
from tensorrt_llm._statistics import Statistics
from tensorrt_llm._tokens import LOGPROB, next_token, read
from tensorrt_llm._transfer import Fetch, Kv, KvServer

_GENERATION_ERROR = "Error in kv cache transfer for generation requests"
_KEPT = 1000
"""Statistics and events that are kept until somebody reads them; older ones are dropped."""


class Engine:
    """Takes sequences; answers through their results' queues."""

    def __init__(self, args: Any, vocab_size: int, max_seq_len: int) -> None:
        self.args = args
        self.faults = Faults()
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.stats_result: IterationResult | None = None
        self.events_result: IterationResult | None = None
        self._early: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        cache = args.kv_cache_config
        count = int(number("KV_BLOCKS", 512))
        if cache.max_tokens is not None:
            count = min(count, max(cache.max_tokens // cache.tokens_per_block, 1))
        self._statistics = Statistics(args.max_batch_size)
        self._blocks = Blocks(
            count, cache.tokens_per_block, cache.enable_block_reuse, cache.enable_partial_reuse, self._tell_event
        )
        transceiver = args.cache_transceiver_config
        self._layout = (version(), cache.tokens_per_block, cache.dtype)
        self._server = KvServer(self._layout, self.faults, self._sent) if transceiver and transceiver.backend else None
        self._timeout_ms = transceiver.kv_transfer_timeout_ms if transceiver else None
        self._wake = Condition()
        self._incoming: list[Sequence] = []
        self._aborted: list[int] = []
        self._queued: list[Sequence] = []
        self._active: list[Sequence] = []
        self._sending: list[Sequence] = []
        self._sent_ids: list[int] = []
        self._next_request_id = random.randrange(1, 1 << 30) << 1
        self._fatal: BaseException | None = None
        self.stopped = False
        self._thread = Thread(target=self._run, daemon=True, name="fake-engine")
        self._thread.start()

    @property
    def has_transceiver(self) -> bool:
        return self._server is not None

    @property
    def is_healthy(self) -> bool:
        """Whether the loop lives; a loop that hangs lives, too."""
        return not self.stopped and self._fatal is None and self._thread.is_alive()

    def submit(self, sequence: Sequence) -> None:
        with self._wake:
            self._incoming.append(sequence)
            self._wake.notify()

    def abort(self, client_id: int) -> None:
        with self._wake:
            self._aborted.append(client_id)
            self._wake.notify()

    def fail(self, error: BaseException) -> None:
        """End the engine: everything in hand gets this error."""
        with self._wake:
            self._fatal = error
            self._wake.notify()

    def stop(self) -> None:
        with self._wake:
            if self.stopped:
                return
            self.stopped = True
            self._wake.notify()
        self._thread.join(5)
        if self._server is not None:
            self._server.close()

    def expect_more(self) -> None:
        """A request came: readers of statistics and events may hear more, as the library sees to at each one."""
        if self.stats_result is None:
            self.stats_result, self.events_result = IterationResult(), IterationResult()
            for event in self._early:
                self.events_result.put(event)
            self._early.clear()
        else:
            assert self.events_result is not None
            self.stats_result.mark_undone()
            self.events_result.mark_undone()

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self.stopped or self._fatal or self._incoming or self._aborted or self._busy()):
                    self._wake.wait()
                if self.stopped or self._fatal:
                    break
                incoming, self._incoming = self._incoming, []
                aborted, self._aborted = self._aborted, []
                sent, self._sent_ids = self._sent_ids, []
            if self.faults.strikes("die"):
                os._exit(134)  # what abort() in the real library's C++ leaves
            while self.faults.strikes("hang") and not self.stopped:
                time.sleep(0.01)
            self._queued += incoming
            self._heed(aborted)
            self._see_to_transfers(sent)
            self._step()
        self._give_up()

    def _busy(self) -> bool:
        return bool(self._queued or self._active or self._sending or self._sent_ids)

    def _give_up(self) -> None:
        if self._fatal is None:
            return
        for sequence in [*self._incoming, *self._queued, *self._active]:
            self._answer(sequence, Response(error=self._fatal))

    def _heed(self, aborted: list[int]) -> None:
        for sequence in list(self._queued):
            if sequence.client_id in aborted:
                self._queued.remove(sequence)  # the library says nothing more of it
        for sequence in self._active:
            sequence.abort_asked |= sequence.client_id in aborted
        for sequence in [each for each in self._active if each.abort_asked]:
            in_flight = os.environ.get("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL") == "1" and version() != "1.2"
            if sequence.stage is not Stage.FETCHING or in_flight:
                self._end(sequence, "cancelled")

    def _see_to_transfers(self, sent: list[int]) -> None:
        for sequence in list(self._sending):
            late = sequence.transfer_is_late(self._timeout_ms)
            if sequence.request_id in sent or (late and self._server and self._server.withdraw(sequence.request_id)):
                self._sending.remove(sequence)
                self._blocks.release(sequence)
        for sequence in [each for each in self._active if each.stage is Stage.FETCHING]:
            fetch = sequence.fetch
            assert fetch is not None
            if fetch.kv is not None:
                sequence.state, sequence.stage = fetch.kv.state, Stage.FETCHED
                sequence.transfer_began = None
            elif fetch.error:
                self._fail(sequence, _GENERATION_ERROR)
            elif sequence.transfer_is_late(self._timeout_ms):
                fetch.give_up()
                self._fail(sequence, f"Request {sequence.request_id} timed out")

    def _step(self) -> None:
        began = time.monotonic()
        admitted = self._admit()
        read_tokens = self._read_prompts()
        writing = [each for each in self._active if each.stage is Stage.DECODE]
        time.sleep((number("STEP_MS", 0.5) + read_tokens * number("PREFILL_US", 0) / 1000) / 1000)
        completed = 0
        for sequence in [each for each in self._active if each.stage is Stage.PREFILL]:
            completed += self._after_prompt(sequence)
        for sequence in writing:
            completed += self._write(sequence)
        for sequence in [each for each in self._active if each.stage is Stage.FETCHED]:
            self._after_fetch(sequence)
        if self.args.enable_iter_perf_stats and self.stats_result is not None and (read_tokens or writing):
            self.stats_result.put(
                self._statistics.of_step(
                    self._blocks, time.monotonic() - began, len(self._active), len(self._queued), completed, admitted,
                    read_tokens, len(writing),
                )
            )  # fmt: skip

    def _admit(self) -> int:
        """Queued requests that have room now begin."""
        admitted = 0
        while self._queued and len(self._active) < self.args.max_batch_size and self._blocks.take(self._queued[0]):
            sequence = self._queued.pop(0)
            self._active.append(sequence)
            admitted += 1
            if sequence.kind != "generation_only":
                sequence.stage = Stage.PREFILL
                continue
            sequence.stage, sequence.transfer_began = Stage.FETCHING, time.monotonic()
            params = sequence.disaggregated
            sequence.fetch = Fetch(params.opaque_state, sequence.request_id, self._layout, self._notify)
        return admitted

    def _read_prompts(self) -> int:
        budget = self.args.max_num_tokens
        tokens = 0
        for sequence in [each for each in self._active if each.stage is Stage.PREFILL]:
            tokens += len(sequence.prompt) - sequence.cached_tokens
        return min(tokens, budget)

    # ------------------------------------------------------------ what happens to one sequence

    def _after_prompt(self, sequence: Sequence) -> bool:
        if sequence.kind == "context_only" and self.faults.strikes("context"):
            self._fail(sequence, "CUDA out of memory while the prompt was read")
            return False
        sequence.state = read(sequence.prompt)
        sequence.stage = Stage.DECODE
        self._blocks.store(sequence, ended=False)
        return self._write(sequence)

    def _after_fetch(self, sequence: Sequence) -> None:
        """The first token is told again, though the context phase has told it."""
        first = sequence.disaggregated.first_gen_tokens[0]
        sequence.stage, sequence.decoding_iter = Stage.DECODE, 1
        self._add(sequence, first)
        self._blocks.store(sequence, ended=False)
        self._tell(sequence)

    def _write(self, sequence: Sequence) -> bool:
        """One more token; True: it was the last."""
        if sequence.kind == "generation_only" and len(sequence.answer) > 1 and self.faults.strikes("generation"):
            self._fail(sequence, "an illegal memory access was encountered")
            return False
        sequence.decoding_iter += 1
        token = self._choose(sequence)
        self._add(sequence, token)
        reason, stop = self._why_ended(sequence, token)
        if reason:
            self._end(sequence, reason, stop)
        elif sequence.decoding_iter == 1 or sequence.decoding_iter % self.args.stream_interval == 0:
            self._tell(sequence)
        return bool(reason)

    def _choose(self, sequence: Sequence) -> int:
        after = number("EOS_AFTER", float("inf"))
        if len(sequence.answer) >= after and not sequence.sampling.ignore_eos:
            return int(sequence.sampling.end_id)
        token = next_token(sequence.state, sequence.seed, self.vocab_size)
        held_back = len(sequence.answer) < (sequence.sampling.min_tokens or 0) and token == sequence.sampling.end_id
        return (token + 1) % self.vocab_size if held_back else token

    def _add(self, sequence: Sequence, token: int) -> None:
        sequence.answer.append(token)
        sequence.unsent.append(token)
        sequence.state = read([token], sequence.state)

    def _why_ended(self, sequence: Sequence, token: int) -> tuple[str | None, int | None]:
        sampling = sequence.sampling
        if len(sequence.answer) > (sampling.min_tokens or 0):
            if token == sampling.end_id and not sampling.ignore_eos:
                return "stop", None
            if token in (sampling.stop_token_ids or ()):
                return "stop", token
        return ("length", None) if len(sequence.answer) >= sequence.max_tokens else (None, None)

    def _tell(self, sequence: Sequence) -> None:
        if sequence.streaming:
            tokens, sequence.unsent = sequence.unsent, []
            self._answer(sequence, self._response(sequence, tokens))

    def _end(self, sequence: Sequence, reason: str, stop: int | None = None) -> None:
        self._active.remove(sequence)
        tokens, sequence.unsent = sequence.unsent, []
        if stop is not None and not sequence.sampling.include_stop_str_in_output:
            tokens = tokens[:-1]  # the real one takes it off the end of token_ids
        response = self._response(sequence, tokens, reason, stop)
        if sequence.kind == "context_only" and reason == "length":
            response = self._hand_over(sequence, response)
        else:
            sequence.stage = Stage.ENDED
            if reason != "cancelled":
                self._blocks.store(sequence, ended=True)
            self._blocks.release(sequence)
        self._answer(sequence, response)

    def _hand_over(self, sequence: Sequence, response: Response) -> Response:
        """Answered; the KV stays until it is fetched or its time is over. Without a timeout that may be never."""
        assert self._server is not None
        first = sequence.answer[0]
        self._server.offer(
            sequence.request_id, Kv(state=read(sequence.prompt), num_tokens=len(sequence.prompt))
        )  # the state before the first token: whoever fetches adds it
        sequence.stage, sequence.transfer_began = Stage.SENDING, time.monotonic()
        self._sending.append(sequence)
        fields = {"ctx_request_id": sequence.request_id, "opaque_state": self._server.opaque}
        if version() != "1.2":
            fields["disagg_request_id"] = sequence.disaggregated.disagg_request_id
            fields["first_gen_log_probs"] = response.logprobs or None
        return replace(
            response, context=DisaggregatedParams(request_type="context_only", first_gen_tokens=[first], **fields)
        )

    def _fail(self, sequence: Sequence, why: str) -> None:
        self._active.remove(sequence)
        self._blocks.release(sequence)
        sequence.stage = Stage.ENDED
        self._answer(sequence, Response(error=why))

    def _response(
        self, sequence: Sequence, tokens: list[int], reason: str | None = None, stop: int | None = None
    ) -> Response:
        wanted = sequence.sampling.logprobs
        logprobs = []
        if wanted is not None:
            logprobs = [
                {(token + i) % self.vocab_size: Logprob(LOGPROB - i, i + 1) for i in range(max(wanted, 1))}
                for token in tokens
            ]
        return Response(
            token_ids=tokens, logprobs=logprobs, finish_reason=reason, stop_reason=stop,
            cached_tokens=sequence.cached_tokens, decoding_iter=sequence.decoding_iter,
        )  # fmt: skip

    def _answer(self, sequence: Sequence, response: Response) -> None:
        if sequence.result is not None:
            sequence.result._queue.put(response)

    # ------------------------------------------------------------ what comes from other threads

    def next_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id

    def _sent(self, request_id: int) -> None:
        with self._wake:
            self._sent_ids.append(request_id)
            self._wake.notify()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _tell_event(self, event: dict[str, Any]) -> None:
        if not self.args.kv_cache_config.event_buffer_max_size:
            return
        if self.events_result is None:
            self._early.append(event)
        else:
            self.events_result.put(event)
