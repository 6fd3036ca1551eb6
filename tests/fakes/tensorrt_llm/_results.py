"""What a request gives back. One object grows while it is iterated over, as in the real library."""

from __future__ import annotations

import asyncio
import queue
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tensorrt_llm._queues import ResultQueue
from tensorrt_llm._requests import DisaggregatedParams
from tensorrt_llm._settings import version

if TYPE_CHECKING:
    from collections.abc import Generator

    from tensorrt_llm._engine import Engine
    from tensorrt_llm._sequence import Sequence


class RequestError(RuntimeError):
    """This one request failed; the engine goes on."""


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer: everything so far, and what the last step added."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: object = None
    disaggregated_params: DisaggregatedParams | None = None
    request_perf_metrics: object = None
    _last_tokens: int = 0
    _last_logprobs: int = 0

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self) -> str:
        return ""

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_tokens :]

    @property
    def logprobs_diff(self) -> list[dict[int, Logprob]]:
        return self.logprobs[self._last_logprobs :]


@dataclass(frozen=True)
class Response:
    """From the engine: new tokens, and on the last one why there are no more. Or an error."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None
    context: DisaggregatedParams | None = None
    cached_tokens: int = 0
    decoding_iter: int = 0
    logprobs_expected: bool = False
    error: str | BaseException | None = None


class RequestOutput:
    """Await it, or iterate over it. After an error it never ends: iterating on waits for ever, as with the real one."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = weakref.ref(engine)
        self._sequence = sequence
        self._queue = ResultQueue()
        self._aborted = False
        self._done = False
        self._error: str | None = None
        self.disaggregated_params = sequence.disaggregated
        self.cached_tokens = 0
        self.decoding_iter = 0
        self.outputs = [CompletionOutput(0)]

    def __getattr__(self, name: str) -> Any:
        if name == "error" and version() == "1.4":
            return self._error
        raise AttributeError(f"'RequestOutput' object has no attribute '{name}'")

    @property
    def request_id(self) -> int:
        return self._sequence.client_id

    @property
    def prompt(self) -> None:
        return None

    @property
    def prompt_token_ids(self) -> list[int]:
        return self._sequence.prompt

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        """Ask for the end. It comes when the engine heeds it: not during a transfer, never for what has finished."""
        engine = self._engine()
        assert engine is not None, "The executor is not set for this result."
        engine.abort(self.request_id)
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    def result(self, timeout: float | None = None) -> RequestOutput:  # noqa: ARG002
        """Wait for the end, outside an event loop. ``timeout`` is ignored, as by the real one."""
        while not self._done:
            self._take(self._queue.get())
        return self

    async def aresult(self) -> RequestOutput:
        while not self._done:
            self._take(await self._queue.aget())
        return self

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        self._take(await self._queue.aget())
        return self

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self._done:
            raise StopIteration
        self._take(self._queue.get())
        return self

    def _take(self, response: Response) -> None:
        engine = self._engine()
        if response.error is not None:
            self._error = str(response.error)
            if isinstance(response.error, str):
                raise RequestError(response.error)
            if engine is not None and not isinstance(response.error, RequestError):
                engine.stop()  # an error of the engine itself: the library shuts it down
            raise response.error
        output = self.outputs[0]
        output._last_tokens, output._last_logprobs = len(output.token_ids), len(output.logprobs)
        output.token_ids.extend(response.token_ids)
        output.logprobs.extend(response.logprobs)
        if response.logprobs_expected and response.finish_reason != "cancelled":
            assert len(output.logprobs) == output.length  # fails as the real one does, where the first token has none
        if response.logprobs:
            output.cumulative_logprob = sum(next(iter(each.values())).logprob for each in output.logprobs)
        if response.context is not None:
            self.disaggregated_params = response.context
        output.disaggregated_params = self.disaggregated_params
        self.cached_tokens = response.cached_tokens
        self.decoding_iter = response.decoding_iter
        if response.finish_reason is not None:
            output.finish_reason, output.stop_reason = response.finish_reason, response.stop_reason
            self._done = True


class IterationResult:
    """Statistics or KV events: each can be read once. Once it ran dry it stays so until a new request is submitted."""

    def __init__(self) -> None:
        self._queue = ResultQueue()
        self._done = False
        self._timeout: float = 2

    def set_timeout(self, timeout: float) -> None:
        self._timeout = timeout

    def mark_undone(self) -> None:
        self._done = False

    def put(self, item: dict[str, Any]) -> None:
        self._queue.put(item)

    def get_results(self) -> list[dict[str, Any]]:
        """All there is; blocks for ``timeout`` seconds after the last one."""
        results = []
        while not self._done:
            try:
                results.append(self._queue.get(self._timeout))
            except queue.Empty:
                self._done = True
        return results

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._done:
            raise StopAsyncIteration
        try:
            return await self._queue.aget(self._timeout)
        except asyncio.TimeoutError:
            self._done = True
            raise StopAsyncIteration from None
