"""The engine ``tensorrt_llm``: one event loop in a thread, in which every request is a task that follows the library.

The library schedules, computes and moves KV in processes of its own. What is left is to say what is to be done, to tell
what comes of it, and to end what does not end by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tandem.deployment import Deployment, Worker
from tandem.engines.base import Engine, EventSink, LoadingSink
from tandem.engines.counters import Counters
from tandem.engines.tensorrt_llm.answer import Answer
from tandem.engines.tensorrt_llm.arguments import (
    bytes_per_token,
    count_tokens,
    make_arguments,
    prepare_environment,
    section_of,
    transfer_deadline_s,
)
from tandem.engines.tensorrt_llm.claims import ClaimClient, ClaimServer
from tandem.engines.tensorrt_llm.feeds import Feed, follow
from tandem.engines.tensorrt_llm.handover import HandOver, agent_name
from tandem.engines.tensorrt_llm.health import Health
from tandem.engines.tensorrt_llm.identity import make_info, make_kv_format, read_shape
from tandem.engines.tensorrt_llm.library import Library, load_library
from tandem.engines.tensorrt_llm.names import BlockNames
from tandem.engines.tensorrt_llm.reports import Reports
from tandem.engines.tensorrt_llm.requests import Request, make_call, plan_request, salt_of
from tandem.engines.tensorrt_llm.statistics import Blocks, read_step
from tandem.engines.tensorrt_llm.tracks import Track, Tracks, check_room
from tandem.engines.torch.checks import check_work
from tandem.errors import ErrorCode, TandemError
from tandem.keys import Keys, load_keys
from tandem.kv.blocks import BlockPool
from tandem.kv.handle import require_compatible
from tandem.kv.leases import LeaseTable
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generate,
    HeldByLibrary,
    Load,
    Prefill,
    Prefilled,
    Pulled,
    Tokens,
    WorkerInfo,
)
from tandem.parallel.network import own_address

log = logging.getLogger(__name__)

TICK_S = 0.1
"""Between looks at leases, and at the library's health."""
STOP_TIMEOUT_S = 8.0


def create(deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> Engine:
    """Build the engine of one worker (an ``EngineFactory``). Takes minutes with a large model.

    Raises:
        TandemError: what in deployment, environment or checkpoint is wrong.
    """
    keys = load_keys()
    prepare_environment(worker)
    loading("TensorRT-LLM", 0.0)
    library = load_library(built=section_of(worker).engine_dir is not None)
    shape = read_shape(Path(deployment.model.path))
    kv = make_kv_format(deployment, worker, shape)
    info = make_info(deployment, worker, epoch, library, kv, shape)
    loading("weights", 0.1)
    try:
        llm = library.LLM(**make_arguments(library, deployment, worker, kv, info.max_model_len))
    except Exception as error:  # of any type: from pydantic's to those of CUDA
        raise TandemError(
            "engine_failed",
            f"worker {worker.name!r}: TensorRT-LLM {library.version} cannot be built: {type(error).__name__}: {error}",
        ) from error
    return TensorRtLlmEngine(info, library, llm, deployment, worker, keys)


class TensorRtLlmEngine:
    """One ``LLM`` (an ``Engine``). All that is not said to be called from any thread runs in its event loop."""

    def __init__(
        self, info: WorkerInfo, library: Library, llm: Any, deployment: Deployment, worker: Worker, keys: Keys
    ) -> None:
        """``llm`` is built, and is ended with the engine."""
        self._library, self._llm = library, llm
        self._adapters = {adapter.task_id: adapter for adapter in section_of(worker).lora}
        self._longest_wait_s = deployment.kv.lease_s + deployment.kv.transfer_timeout_s
        self._leases = LeaseTable(BlockPool(1), deployment.kv.lease_s)  # the blocks are the library's
        name = agent_name(info.worker_id, info.epoch)
        self._claims = ClaimServer(name, self._leases, keys, own_address(deployment))
        assert info.library is not None
        self._info = msgspec.structs.replace(
            info, library=msgspec.structs.replace(info.library, claims=self._claims.address)
        )
        self._client = ClaimClient(name, keys, deployment.kv.transfer_timeout_s)
        pinned_s = transfer_deadline_s(deployment, worker)
        self._handover = HandOver(self._info, library, self._leases, self._client, keys, pinned_s)
        self._tracks = Tracks(deployment.kv.transfer_timeout_s)
        self._names = BlockNames(info.kv.block_size)
        self._counters = Counters()
        self._blocks = Blocks(total=(count_tokens(worker, info.kv) or 0) // info.kv.block_size)
        self._reports = Reports(self._load)
        self._health = Health(library, llm, section_of(worker).stall_timeout_s)
        self._feeds: list[asyncio.Task[None]] = []
        self._takers: dict[Feed, Callable[[Mapping[str, Any]], None]] = {"get_stats": self._stepped}
        if deployment.kv.prefix_cache:
            self._takers["get_kv_cache_events"] = self._cached
        self._is_up = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="engine", daemon=True)

    # ------------------------------------------------------------ the protocol; called from any thread

    @property
    def info(self) -> WorkerInfo:
        """Who this worker is."""
        return self._info

    def start(self, sink: EventSink) -> None:
        """Begin to take work; every event goes to ``sink``."""
        self._sink = sink
        self._thread.start()
        self._is_up.wait()

    def submit(self, work: list[AnyWork]) -> None:
        """Queue work; what cannot be done ends in a ``Failed`` event."""
        self._soon(partial(self._accept_all, work))

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests, and end the leases they hold."""
        self._soon(partial(self._cancel_all, request_ids))

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to hand KV over to or from ``peer``; the library connects with the first transfer.

        Raises:
            TandemError: ``worker_incompatible``, naming in what the two differ.
        """
        require_compatible(self._info, peer)
        known = self._handover.peers.get(peer.worker_id)
        if known is None or peer.epoch >= known.epoch:
            self._handover.peers[peer.worker_id] = peer

    def unpair(self, worker_id: str) -> None:
        """Forget a peer that is gone for good; an unknown one is no error."""
        self._handover.peers.pop(worker_id, None)

    def stop(self) -> None:
        """End all threads, and the library. Running requests are dropped."""
        if self._thread.is_alive():
            self._soon(self._stopping.set)
            self._thread.join(STOP_TIMEOUT_S)
        self._claims.stop()
        ending = threading.Thread(target=self._llm.shutdown, name="shutdown", daemon=True)
        ending.start()
        ending.join(STOP_TIMEOUT_S)  # one that hangs is ended with the process

    def _soon(self, call: Callable[[], None]) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(call)

    # ------------------------------------------------------------ the loop

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reports.start(self._loop, self._sink)
        self._is_up.set()
        try:
            while not self._stopping.is_set():
                self._look()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), TICK_S)
        finally:
            self._client.close()

    def _look(self) -> None:
        """What time brings about."""
        self._leases.expire()
        self._health.check(len(self._tracks))
        self._reports.flush()

    def _load(self) -> Load:
        used = self._blocks.held(self._tracks.blocks + self._handover.blocks_held)
        queued = self._tracks.queued
        return Load(
            queued=queued,
            queued_tokens=self._tracks.unread,
            running=len(self._tracks) - queued,
            blocks_total=self._blocks.total,
            blocks_used=used,
            blocks_cached=min(len(self._names), max(0, self._blocks.total - used)),
            handles_held=self._leases.held,
            handles_granted=self._leases.granted,
            handles_expired=self._leases.expired,
            **vars(self._counters),
        )

    # ------------------------------------------------------------ accept

    def _accept_all(self, work: list[AnyWork]) -> None:
        for one in work:
            try:
                self._accept(one)
            except TandemError as error:
                self._reports.say(Failed(request_id=one.request_id, code=error.code, message=error.message))

    def _accept(self, work: AnyWork) -> None:
        if work.request_id in self._tracks:
            raise TandemError("invalid_request", f"request_id: {work.request_id!r} is in hand already")
        check_work(work, self._info)
        if isinstance(work, Prefill) and self._info.stage == "decode":  # in 1.2 it would be the engine's end
            raise TandemError("invalid_request", f"worker {self._info.worker_id!r} is for decode, not for prefill")
        needed = check_room(work, self._info, self._blocks.total)
        handle = self._handover.accept(work) if isinstance(work, Decode) else None
        known = [*work.token_ids, *work.output_ids]
        unread = 0 if handle is not None else self._names.count_unread(known, salt_of(work))
        track = Track(work, handle, needed, unread)
        self._tracks.add(track)
        track.task = self._loop.create_task(self._follow(track))

    # ------------------------------------------------------------ one request, from beginning to end

    async def _follow(self, track: Track) -> None:
        """Whatever happens to it is told, once."""
        try:
            await self._run(track)
        except TandemError as error:
            self._fail(track, error.code, error.message)
        except Exception as error:
            log.warning("request %s failed", track.request_id, exc_info=True)
            code: ErrorCode = "transfer_failed" if track.is_transferring else "engine_failed"
            words = f"TensorRT-LLM on worker {self._info.worker_id!r}: {type(error).__name__}: {error}"
            self._fail(track, code, f"the KV did not come: {words}" if track.is_transferring else words)

    async def _run(self, track: Track) -> None:
        work, held, num_held = track.work, None, 0
        began = time.monotonic()
        if track.handle is not None:
            await self._handover.claim(track.handle)
            assert isinstance(track.handle.held, HeldByLibrary)
            held, num_held = track.handle.held, track.handle.num_tokens
        request = plan_request(self._library, work, held, num_held)
        self._names.expect(request.prompt, salt_of(work))
        self._begin(track, request)
        if isinstance(work, Prefill):
            with self._health.watch(Exception):
                await track.output
            self._prefilled(track, request)
        else:
            await self._stream(track, began)

    def _begin(self, track: Track, request: Request) -> None:
        """Hand a request to the library.

        Raises:
            TandemError: ``invalid_request``: it refuses the request.
        """
        streaming = not isinstance(track.work, Prefill)
        try:
            call = make_call(self._library, track.work, request, self._adapters, streaming=streaming)
            with self._health.watch(RuntimeError):
                output = self._llm.generate_async(**call)
        except (ValueError, TypeError, self._library.RequestError) as error:
            raise TandemError("invalid_request", f"TensorRT-LLM refuses the request: {error}") from error
        track.kind, track.output = request.kind, output
        track.answer = Answer(track.work, request.first_index)
        self._follow_feeds()

    def _prefilled(self, track: Track, request: Request) -> None:
        """The context phase is over: its token, and a handle unless that ends the answer."""
        output, answer = track.output.outputs[0], track.answer
        assert answer is not None
        self._told(track)
        reason = answer.finish_reason
        if reason is None and output.finish_reason not in ("length", "not_finished"):
            reason = answer.ended(output)
        handle = None
        if reason is None:
            told = track.output.disaggregated_params if request.kind == "context_only" else None
            handle = self._handover.grant(track.request_id, request.prompt, told)
        prefilled = Prefilled(
            request_id=track.request_id,
            handle=handle,
            finish_reason=reason,
            cached_tokens=track.cached_tokens,
            compute_s=time.monotonic() - track.arrived,
        )
        self._end(track, prefilled)

    async def _stream(self, track: Track, began: float) -> None:
        """Tokens as they come, to the end of the answer."""
        assert track.answer is not None
        late = self._loop.call_later(self._longest_wait_s, self._transfer_is_late, track)
        try:
            async for output in self._health.steps(track.output):
                if track.is_transferring:
                    self._pulled(track, time.monotonic() - began)
                self._told(track)
                if track.answer.finish_reason is not None:
                    if not output.finished:
                        output.abort()  # the library does not know that the answer is over
                    break
        finally:
            late.cancel()
        self._finish(track, track.answer.ended(track.output.outputs[0]))

    def _told(self, track: Track) -> None:
        """Tell what is new in the library's output."""
        assert track.answer is not None
        track.has_begun = True
        self._health.got_on()
        index, tokens, logprobs = track.answer.take(track.output.outputs[0])
        if tokens:
            self._reports.say(Tokens(request_id=track.request_id, index=index, token_ids=tokens, logprobs=logprobs))

    def _pulled(self, track: Track, seconds: float) -> None:
        """The first token has come again, so the KV is here. How many bytes that were is reckoned, not measured."""
        assert track.handle is not None
        moved = int(bytes_per_token(self._info.kv) * track.handle.num_tokens)
        self._counters.pulled(moved, seconds)
        self._reports.say(Pulled(request_id=track.request_id, bytes_moved=moved, seconds=seconds))

    # ------------------------------------------------------------ ends

    def _transfer_is_late(self, track: Track) -> None:
        """The library has a deadline of its own for a transfer, and versions that miss it. By now prefill has freed the
        KV."""
        if self._tracks.holds(track) and track.is_transferring:
            self._abort(track)
            self._fail(
                track, "transfer_failed", f"its KV did not come within {self._longest_wait_s:g} s after the claim"
            )

    def _cancel_all(self, request_ids: list[str]) -> None:
        self._handover.cancel(request_ids)
        for request_id in request_ids:
            if track := self._tracks.take(request_id):
                self._abort(track)
                self._reports.say(Finished(request_id=request_id, reason="cancelled"))
        self._reports.say()  # the leases that have ended

    def _abort(self, track: Track) -> None:
        """Stop following a request, and ask the library to stop it. It need not answer: it says nothing more of one
        that has not begun, and heeds nothing while KV moves."""
        if track.output is not None:
            track.output.abort()
        if track.task is not None:
            track.task.cancel()

    def _finish(self, track: Track, reason: FinishReason) -> None:
        cached = track.cached_tokens if isinstance(track.work, Generate) else 0
        self._end(track, Finished(request_id=track.request_id, reason=reason, cached_tokens=cached))

    def _fail(self, track: Track, code: ErrorCode, message: str) -> None:
        self._end(track, Failed(request_id=track.request_id, code=code, message=message))

    def _end(self, track: Track, event: EngineEvent) -> None:
        if self._tracks.holds(track):
            self._tracks.take(track.request_id)
            self._reports.say(event)

    # ------------------------------------------------------------ what the library tells by the way

    def _follow_feeds(self) -> None:
        """From the first request on, whose event loop they belong to."""
        if not self._feeds:
            feeds = (follow(self._library, self._llm, feed, take) for feed, take in self._takers.items())
            self._feeds = [self._loop.create_task(feed) for feed in feeds]

    def _stepped(self, statistics: Mapping[str, Any]) -> None:
        self._health.got_on()
        self._counters.stepped(*read_step(statistics))
        self._blocks.stepped(statistics)
        self._reports.say()

    def _cached(self, event: Mapping[str, Any]) -> None:
        self._reports.say(changes=self._names.take(event))
