"""Whether the library still gets on. One that does not is ended with its process, and started again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tandem.engines.tensorrt_llm.library import Library


class EngineEnded(Exception):
    """The library does not get on, or has ended."""


class Health:
    """Told of all that moves."""

    def __init__(self, library: Library, llm: Any, stall_timeout_s: float) -> None:
        """It hangs when for ``stall_timeout_s`` seconds no request gets on: alive it says it is in any case."""
        self._library, self._llm, self._stall_timeout_s = library, llm, stall_timeout_s
        self._got_on = time.monotonic()
        self._error: BaseException | None = None

    def got_on(self) -> None:
        """Something has come out."""
        self._got_on = time.monotonic()

    @contextlib.contextmanager
    def watch(self, *fatal: type[Exception]) -> Iterator[None]:
        """Around a request's call or wait. Errors of the types ``fatal`` that are not the request's own are the
        engine's: the library ends with them."""
        try:
            yield
        except self._library.RequestError:
            raise
        except fatal as error:
            self._error = error
            raise

    async def steps(self, output: Any) -> AsyncIterator[Any]:
        """What a result is iterated over for, watched."""
        with self.watch(Exception):
            async for step in output:
                yield step

    def check(self, in_hand: int) -> None:
        """To be called now and then.

        Raises:
            EngineEnded: why.
        """
        if self._error is not None:
            raise EngineEnded(f"TensorRT-LLM has ended: {type(self._error).__name__}: {self._error}")
        if not self._library.is_healthy(self._llm):
            raise EngineEnded("TensorRT-LLM has ended; the lines before this one say why")
        stalled_s = time.monotonic() - self._got_on
        if not in_hand:
            self.got_on()
        elif stalled_s > self._stall_timeout_s:
            raise EngineEnded(
                f"TensorRT-LLM hangs: none of {in_hand} requests has got on for {stalled_s:.0f} s "
                "(tensorrt_llm.stall_timeout_s)"
            )
