"""Clients that do not pause: streams of requests to the gateway's published port, and what came of each."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType

import grpc
import tritonclient.grpc.aio as grpc_aio

from tests.integration.clients import Answer, ask

STREAMS = 4
TOKENS = 24
DEADLINE_S = 180.0


class Load:
    """``with Load(url) as load:`` — streams until the end of the block, in a thread of its own."""

    def __init__(self, url: str, tokens: int = TOKENS) -> None:
        self.answers: list[Answer] = []
        """Of all requests that have ended, in that order."""
        self.again = 0
        """Requests that were sent again, since no gateway was there to take them."""
        self.gateway_restarts = False
        """Whether such are to be sent again."""
        self._url, self._tokens = url, tokens
        self._ended = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(DEADLINE_S)
        if self._problem is not None:
            raise RuntimeError("a client failed") from self._problem
        if self._thread.is_alive():
            raise RuntimeError(f"requests have no end after {DEADLINE_S:.0f} s")

    @property
    def failures(self) -> list[str]:
        """What the failed requests were told."""
        return [answer.error or "cut short" for answer in self.answers if not self._is_whole(answer)]

    def until(self, what: str, condition: Callable[[list[Answer]], bool], timeout: float = DEADLINE_S) -> None:
        """Go on until the answers from now on are as they should be."""
        first, deadline = len(self.answers), time.monotonic() + timeout
        while not condition(self.answers[first:]):
            if time.monotonic() > deadline or not self._thread.is_alive():
                last = [answer.error or answer.facts.get("decode_worker") for answer in self.answers[first:][-8:]]
                raise RuntimeError(f"{what}: not after {timeout:.0f} s; the last answers: {last}")
            time.sleep(0.1)

    def until_answers(self, count: int) -> None:
        """For as many whole answers."""
        self.until(f"{count} whole answers", lambda new: sum(map(self._is_whole, new)) >= count)

    def until_at(self, address: str) -> None:
        """Until a worker at this address has served a whole request."""

        def is_there(answer: Answer) -> bool:
            where = [str(answer.facts.get(f"{stage}_worker")) for stage in ("prefill", "decode")]
            return self._is_whole(answer) and any(f"@{address}:" in one for one in where)

        self.until(f"an answer from {address}", lambda new: any(map(is_there, new)))

    def _is_whole(self, answer: Answer) -> bool:
        return answer.error is None and len(answer.output_ids) == self._tokens

    def _run(self) -> None:
        async def all_streams() -> None:
            await asyncio.gather(*map(self._ask_on, range(STREAMS)))

        try:
            asyncio.run(all_streams())
        except BaseException as error:
            self._problem = error

    async def _ask_on(self, _: int) -> None:
        async with grpc_aio.InferenceServerClient(self._url) as client:
            while not self._ended.is_set():
                prompt = [random.randrange(1, 40_000) for _ in range(20)]
                inputs = {"input_ids": prompt, "max_tokens": self._tokens, "ignore_eos": True, "stream": True}
                try:
                    answer = await ask(client, "llm", inputs)
                except grpc.RpcError as error:
                    answer = Answer(error=str(error))
                if self.gateway_restarts and answer.error is not None and not answer.output_ids:
                    self.again += 1
                    await asyncio.sleep(0.2)
                else:
                    self.answers.append(answer)
