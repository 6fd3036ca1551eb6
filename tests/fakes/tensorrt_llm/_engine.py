"""The engine behind the fake: one thread that goes from step to step, as PyExecutor's loop does."""

from __future__ import annotations

import os
import time
from threading import Condition, Thread
from typing import Any

from tensorrt_llm._answers import add, choose, make_response, why_ended
from tensorrt_llm._blocks import Blocks
from tensorrt_llm._faults import Faults
from tensorrt_llm._feeds import KEPT, Feed
from tensorrt_llm._handover import make_context_params
from tensorrt_llm._results import Response
from tensorrt_llm._sequence import Sequence, Stage
from tensorrt_llm._settings import number, version
from tensorrt_llm._statistics import Statistics, Step
from tensorrt_llm._tokens import read
from tensorrt_llm._transfer import Fetch, Kv, KvServer

_GENERATION_ERROR = "Error in kv cache transfer for generation requests"
_PAUSE_S = 0.005
"""Between looks at transfers, while there is nothing to compute."""


class Engine:
    """Takes sequences; answers through their results' queues."""

    def __init__(self, args: Any, vocab_size: int, max_seq_len: int) -> None:
        self.args = args
        self.faults = Faults()
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        by_call = args.orchestrator_type == "rpc"
        if by_call:
            self.rpc_client = object()
        cache = args.kv_cache_config
        self.stats = Feed(by_call=by_call, kept=args.iter_stats_max_iterations or KEPT)
        self.events = Feed(by_call=by_call, kept=cache.event_buffer_max_size or 1)
        count = int(number("KV_BLOCKS", 512))
        if cache.max_tokens is not None:
            count = min(count, max(cache.max_tokens // cache.tokens_per_block, 1))
        self._statistics = Statistics(args.max_batch_size)
        self._blocks = Blocks(
            count, cache.tokens_per_block, cache.enable_block_reuse, cache.enable_partial_reuse, self._tell_event
        )
        transceiver = args.cache_transceiver_config
        self._layout = (version(), cache.tokens_per_block, cache.dtype)
        self._server: KvServer | None = None
        self._timeout_ms: int | None = None
        if transceiver is not None and transceiver.backend is not None:
            self._timeout_ms = transceiver.kv_transfer_timeout_ms
            self._server = KvServer(self._layout, transceiver.max_tokens_in_buffer, self.faults, self._sent)
        self._wake = Condition()
        self._incoming: list[Sequence] = []
        self._aborted: list[int] = []
        self._sent_ids: list[int] = []
        self._queued: list[Sequence] = []
        self._active: list[Sequence] = []
        self._sending: list[Sequence] = []
        self._next_request_id = args.max_batch_size
        self._fatal: BaseException | None = None
        self._ended = False
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
        """Take a request; raises what has ended the engine, if something has."""
        with self._wake:
            if self._ended and self._fatal is not None:
                self.stopped = True
                raise self._fatal
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
            self.stopped = True
            self._wake.notify()
        self._thread.join(5)
        if self._server is not None:
            self._server.close()
            self._server = None

    def next_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id

    def answer(self, sequence: Sequence, response: Response) -> None:
        assert sequence.result is not None
        sequence.result._queue.put(response)

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        while self._take_in():
            if self.faults.strikes("die"):
                os._exit(134)  # what abort() in the real library's C++ leaves
            if self.faults.strikes("fatal"):
                self.fail(RuntimeError("CUDA error: an illegal memory access was encountered"))
                break
            while self.faults.strikes("hang") and not self.stopped:
                time.sleep(0.01)
            self._step()
        with self._wake:
            in_hand, self._incoming = [*self._incoming, *self._queued, *self._active], []
            self._ended = True
        for sequence in in_hand if self._fatal else []:
            self.answer(sequence, Response(error=self._fatal))

    def _take_in(self) -> bool:
        """Wait until there is something to do, and take it; False: it is over."""
        with self._wake:
            self._block_for_transfers()
            # Up to 1.2 an idle loop waits for requests alone: what became of KV it sent, it sees with the next one.
            waits = bool(self._active or self._queued or (self._sending and version() != "1.2"))
            while not (self.stopped or self._fatal or self._incoming or self._aborted or self._computes()):
                if not self._wake.wait(_PAUSE_S if waits else None) or waits:
                    break
            if self.stopped or self._fatal:
                return False
            self._queued += self._incoming
            self._incoming = []
            self._heed(self._aborted)
            self._aborted = []
            sent, self._sent_ids = self._sent_ids, []
        self._see_to_transfers(sent)
        return True

    def _block_for_transfers(self) -> None:
        """While all that it has in hand waits for KV, the real loop may do so, too, deaf to aborts and timeouts."""
        while (
            number("BLOCKING_TRANSFERS", 0)
            and self._active
            and all(each.fetch is not None and not each.fetch.ended for each in self._active)
            and not (self.stopped or self._fatal)
        ):
            self._wake.wait()

    def _computes(self) -> bool:
        return any(each.stage is not Stage.FETCHING for each in self._active)

    def _heed(self, aborted: list[int]) -> None:
        for sequence in list(self._queued):
            if sequence.client_id in aborted:
                self._queued.remove(sequence)  # the library says nothing more of it
        for sequence in self._active:
            sequence.abort_asked |= sequence.client_id in aborted
        for sequence in [each for each in self._active if each.abort_asked]:
            at_once = os.environ.get("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL") == "1" and version() != "1.2"
            if sequence.stage is not Stage.FETCHING or at_once:
                self._end(sequence, "cancelled")

    def _see_to_transfers(self, sent: list[int]) -> None:
        for sequence in list(self._sending):
            late = sequence.transfer_is_late(self._timeout_ms)
            if sequence.transfer_id in sent or (late and self._server and self._server.withdraw(sequence.transfer_id)):
                self._sending.remove(sequence)
                self._blocks.release(sequence)
        for sequence in [each for each in self._active if each.stage is Stage.FETCHING]:
            self._look_after(sequence)

    def _look_after(self, sequence: Sequence) -> None:
        fetch = sequence.fetch
        assert fetch is not None
        if fetch.kv is not None:
            sequence.state, sequence.stage, sequence.transfer_began = fetch.kv.state, Stage.FETCHED, None
            if sequence.abort_asked:
                self._end(sequence, "cancelled")
        elif fetch.error:
            self._fail(sequence, _GENERATION_ERROR)
        elif sequence.transfer_is_late(self._timeout_ms) and self.faults.strikes("transfer_stuck"):
            self._drop(sequence)
        elif sequence.transfer_is_late(self._timeout_ms):
            fetch.give_up()
            self._fail(sequence, f"Request {sequence.request_id} timed out")

    def _step(self) -> None:
        began = time.monotonic()
        admitted = self._admit()
        writing = [each for each in self._active if each.stage is Stage.DECODE]
        reading, read_tokens = self._read_prompts(self.args.max_num_tokens - len(writing))
        if writing or reading:
            time.sleep((number("STEP_MS", 0.5) + read_tokens * number("PREFILL_US", 0) / 1000) / 1000)
        ended = [self._after_prompt(each) for each in reading if not each.unread]
        ended += [self._write(each) for each in writing]
        for sequence in [each for each in self._active if each.stage is Stage.FETCHED]:
            self._after_fetch(sequence)
        if self.args.enable_iter_perf_stats and (reading or writing):
            step = Step(
                seconds=time.monotonic() - began,
                active=len(self._active),
                queued=len(self._queued),
                admitted=admitted,
                completed=sum(ended),
                reading=len(reading),
                read_tokens=read_tokens,
                writing=len(writing),
            )
            self.stats.tell(self._statistics.of_step(self._blocks, step))

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
            opaque = sequence.disaggregated.opaque_state
            sequence.fetch = Fetch(opaque, sequence.transfer_id, self._layout, self._notify)
        return admitted

    def _read_prompts(self, budget: int) -> tuple[list[Sequence], int]:
        """Which prompts are read in this step, and how many tokens: in parts only where chunked prefill is on."""
        reading, tokens = [], 0
        for sequence in [each for each in self._active if each.stage is Stage.PREFILL]:
            part = min(sequence.unread, budget - tokens) if self.args.enable_chunked_prefill else sequence.unread
            if part <= 0 or (reading and tokens + part > budget):
                break
            sequence.unread -= part
            tokens += part
            reading.append(sequence)
        return reading, tokens

    # ------------------------------------------------------------ what happens to one sequence

    def _after_prompt(self, sequence: Sequence) -> bool:
        if sequence.kind == "context_only" and self.faults.strikes("context"):
            self._fail(sequence, "CUDA out of memory while the prompt was read")
            return True
        sequence.state = read(sequence.prompt)
        sequence.stage = Stage.DECODE
        self._blocks.store(sequence, ended=False)
        return self._write(sequence)

    def _after_fetch(self, sequence: Sequence) -> None:
        """The first token is told again, though the context phase has told it."""
        sequence.stage, sequence.decoding_iter = Stage.DECODE, 1
        add(sequence, sequence.disaggregated.first_gen_tokens[0])
        self._blocks.store(sequence, ended=False)
        self._tell(sequence)

    def _write(self, sequence: Sequence) -> bool:
        """One more token; True: it was the last."""
        if sequence.kind == "generation_only" and len(sequence.answer) > 1 and self.faults.strikes("generation"):
            self._fail(sequence, "an illegal memory access was encountered")
            return True
        sequence.decoding_iter += 1
        token = choose(sequence, self.vocab_size)
        add(sequence, token)
        reason, stop = why_ended(sequence, token)
        if reason:
            self._end(sequence, reason, stop)
        elif sequence.decoding_iter == 1 or sequence.decoding_iter % self.args.stream_interval == 0:
            self._tell(sequence)
        return reason is not None

    def _tell(self, sequence: Sequence) -> None:
        if sequence.streaming:
            self.answer(sequence, make_response(sequence, self.vocab_size))

    def _end(self, sequence: Sequence, reason: str, stop: int | None = None) -> None:
        response = make_response(sequence, self.vocab_size, reason, stop)
        if sequence.kind == "context_only" and reason == "length":
            # Answered; the KV stays until it is fetched or its time is over. Without a timeout that may be never.
            assert self._server is not None
            kv = Kv(state=read(sequence.prompt), num_tokens=len(sequence.prompt))
            self._server.offer(sequence.transfer_id, kv)
            response = make_context_params(sequence, self._server.opaque, response)
            self._active.remove(sequence)
            sequence.stage, sequence.transfer_began = Stage.SENDING, time.monotonic()
            self._sending.append(sequence)
        else:
            if reason != "cancelled":
                self._blocks.store(sequence, ended=True)
            self._drop(sequence)
        self.answer(sequence, response)

    def _fail(self, sequence: Sequence, why: str) -> None:
        self._drop(sequence)
        self.answer(sequence, Response(error=why))

    def _drop(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._blocks.release(sequence)
        sequence.stage = Stage.ENDED

    # ------------------------------------------------------------ what comes from other threads

    def _sent(self, transfer_id: int) -> None:
        with self._wake:
            self._sent_ids.append(transfer_id)
            self._wake.notify()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _tell_event(self, event: dict[str, Any]) -> None:
        if self.args.kv_cache_config.event_buffer_max_size:
            self.events.tell(event)
