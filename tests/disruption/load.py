"""64 streams without a pause. Each answer is compared with the undisturbed one as soon as it has ended."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import tritonclient.grpc.aio as grpc_aio

from tests.disruption.cluster import Cluster, url_of
from tests.hosts import Host
from tests.integration.clients import Answer, ask, ask_all
from tests.integration.test_recovery import CLOSE, make_request, told

STREAMS = 64
TIMEOUT_S = 120.0
"""Of a request: long enough for one worker to answer all of them."""
MARGIN_S = 10.0
"""By so much later at most its client has its end."""
TRIES = 4
"""As often a request is asked, at the one gateway and the other in turn: one may be struck right after the other."""
PATIENCE_S = 180.0
_ALIVE = grpc_aio.KeepAliveOptions(keepalive_time_ms=2000, keepalive_timeout_ms=2000, http2_max_pings_without_data=0)


def make_requests() -> list[dict[str, Any]]:
    """Greedy, with penalties, sampled, and with log-probabilities; none of them a close call."""
    numbers = [n for n in range(STREAMS + len(CLOSE)) if n not in CLOSE]
    return [make_request(n) | {"timeout_s": TIMEOUT_S} for n in numbers]


@dataclass(frozen=True)
class Requests:
    """What is asked, and what must come."""

    asked: list[dict[str, Any]]
    expected: list[dict[str, Any]]


def ask_undisturbed(cluster: Cluster, requests: list[dict[str, Any]]) -> Requests:
    """The answers that all others are held to.

    Raises:
        RuntimeError: one failed.
    """
    answers = asyncio.run(ask_all(url_of(cluster.gateways[0]), "llm", requests, at_once=STREAMS))
    for request, answer in zip(requests, answers, strict=True):
        if answer.error is not None:
            raise RuntimeError(f"while nothing was disturbed: {request}: {answer.error}")
    return Requests(requests, [told(answer) for answer in answers])


class Load:
    """See the module. ``async with``: ends when all streams have ended by themselves."""

    def __init__(self, cluster: Cluster, requests: Requests, *, leave_share: float = 0.0, seed: int = 1) -> None:
        """``leave_share``: of the clients, those who leave in the midst of their answer, as drawn by ``seed``."""
        self._cluster, self._requests, self._expected = cluster, requests.asked, requests.expected
        self._leave_share, self._draw = leave_share, random.Random(seed)
        self.done = 0
        """Answers that were as they should be."""
        self.retried = 0
        """How often a request was asked again at the other gateway, since the one that had it was struck."""
        self.left = 0
        """Clients who left, with what they should have got by then."""
        self.tokens = 0
        self.slowest = 0.0
        self.wrong: list[str] = []
        """What nobody should ever see."""
        self.used: dict[str, float] = {}
        """When a worker last had a part in an answer that has ended (monotonic clock), by name."""
        self.struck: set[Host] = set()
        """Gateways that may fail."""
        self._next = itertools.count()
        self._ended = False

    async def __aenter__(self) -> Load:
        self._clients = {
            host: grpc_aio.InferenceServerClient(url_of(host), keepalive_options=_ALIVE)
            for host in self._cluster.gateways
        }
        self._tasks = [asyncio.create_task(self._ask_on(self._cluster.gateways[n % 2])) for n in range(STREAMS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)
        for client in self._clients.values():
            await client.close()

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Go on until a condition holds.

        Raises:
            AssertionError: an answer is wrong, or it takes too long.
        """
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert not self.wrong, self.wrong[:3]
            for task in self._tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
            await asyncio.sleep(0.05)

    async def more_tokens(self, count: int) -> None:
        """Until so many more have come."""
        wanted = self.tokens + count
        await self.until(f"{count} more tokens", lambda: self.tokens >= wanted)

    async def used_again(self, hosts: list[Host]) -> None:
        """Until the workers there have had a part in answers from now on."""
        now, names = time.monotonic(), [self._cluster.worker_name(host) for host in hosts]
        await self.until(f"{names} are used again", lambda: all(self.used.get(name, 0.0) > now for name in names))

    async def answers_from(self, gateways: list[Host]) -> None:
        """Until these gateways have answered from now on."""
        now = time.monotonic()
        names = [f"gateway {host.name}" for host in gateways]
        await self.until(f"answers from {names}", lambda: all(self.used.get(name, 0.0) > now for name in names))

    async def _ask_on(self, gateway: Host) -> None:
        while not self._ended:
            number = next(self._next) % len(self._requests)
            began, asked = time.monotonic(), gateway
            answer = await self._ask(asked, number)
            for _ in range(TRIES - 1):
                if answer.error is None or asked not in self.struck:
                    break
                self.retried += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
                began, asked = time.monotonic(), next(host for host in self._cluster.gateways if host is not asked)
                answer = await self._ask(asked, number)
            if answer.error is None:
                self.used[f"gateway {asked.name}"] = time.monotonic()
            self._take(number, answer, time.monotonic() - began)

    async def _ask(self, gateway: Host, number: int) -> Answer:
        seen = 0

        def count(answer: Answer) -> None:
            nonlocal seen
            self.tokens += len(answer.output_ids) - seen
            seen = len(answer.output_ids)

        leaves = self._draw.random() < self._leave_share
        leave_after = self._draw.randint(1, 12) if leaves else None
        asked = ask(self._clients[gateway], "llm", self._requests[number], leave_after=leave_after, on_response=count)
        began = time.monotonic()
        try:
            answer = await asyncio.wait_for(asked, TIMEOUT_S + MARGIN_S)
        except asyncio.TimeoutError:
            answer = Answer()
        except grpc.RpcError as error:  # the connection broke
            answer = Answer(error=str(error))
        if time.monotonic() - began >= TIMEOUT_S + MARGIN_S:
            answer.error = f"HUNG: no end of it {MARGIN_S:g} s after its deadline"
        return answer

    def _take(self, number: int, answer: Answer, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)
        got, expected = told(answer), self._expected[number]
        if "left" in answer.facts and answer.output_ids == expected["ids"][: len(answer.output_ids)]:
            self.left += 1
            return
        if got != expected:
            self.wrong.append(f"{self._requests[number]}: {got} instead of {expected}; {answer.facts}")
            return
        self.done += 1
        for worker in (answer.facts["prefill_worker"], answer.facts["decode_worker"]):
            self.used[worker] = time.monotonic()


async def nothing_left(cluster: Cluster) -> None:
    """All workers answer, and hold nothing.

    Raises:
        AssertionError: something is left.
    """
    end = time.monotonic() + PATIENCE_S
    while left := await asyncio.to_thread(cluster.leftovers):
        assert time.monotonic() < end, left
        await asyncio.sleep(0.5)
