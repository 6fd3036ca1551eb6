"""Where workers are: names that stand for many hosts, change, fail, or take for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from tandem.deployment import Worker
from tandem.lanes import discovery as module
from tandem.lanes.discovery import Discovery, Resolve, resolve_host

DEADLINE_S = 20.0


class Watcher:
    """What was found, look by look."""

    def __init__(self) -> None:
        self.looks: list[set[str]] = []
        self.looked = asyncio.Event()

    def found(self, _: Worker, addresses: set[str]) -> None:
        self.looks.append(addresses)
        self.looked.set()

    async def next(self) -> set[str]:
        """What the next look finds."""
        self.looked.clear()
        await asyncio.wait_for(self.looked.wait(), DEADLINE_S)
        return self.looks[-1]


def watching(address: str | list[str], resolve: Resolve, test: Callable[[Watcher], Awaitable[None]]) -> None:
    async def run() -> None:
        watcher = Watcher()
        worker = Worker(name="decode_0", stage="decode", address=address)
        task = asyncio.ensure_future(Discovery([worker], watcher.found, resolve).run())
        try:
            await test(watcher)
        finally:
            task.cancel()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(module, "ANSWER_S", 0.05)


def test_a_name_stands_for_all_its_addresses_as_they_come_and_go() -> None:
    there = ["10.0.0.1"]

    async def test(watcher: Watcher) -> None:
        assert await watcher.next() == {"10.0.0.1:8001"}
        there[:] = ["10.0.0.2", "fd00::1"]
        await watcher.next()
        assert await watcher.next() == {"10.0.0.2:8001", "[fd00::1]:8001"}
        there.clear()
        await watcher.next()
        assert await watcher.next() == set()

    watching("decode:8001", lambda _: list(there), test)


def test_several_addresses_add_up() -> None:
    async def test(watcher: Watcher) -> None:
        assert await watcher.next() == {"10.0.0.1:8001", "10.0.0.1:9001", "[fd00::2]:8001"}

    watching(["10.0.0.1:8001", "10.0.0.1:9001", "[fd00::2]:8001"], lambda host: [host], test)


def test_as_long_as_the_resolver_fails_or_hangs_all_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    mood, release, calls = ["well"], threading.Event(), list[str]()

    def resolve(_: str) -> list[str]:
        calls.append(mood[0])
        if mood[0] == "fails":
            raise OSError("resolver down")
        if mood[0] == "hangs":
            release.wait(DEADLINE_S)
        return ["10.0.0.1"]

    async def test(watcher: Watcher) -> None:
        await watcher.next()
        for mood[0] in ("fails", "hangs"):
            for _ in range(4):
                assert await watcher.next() == {"10.0.0.1:8001"}
        assert calls.count("hangs") == 1
        release.set()
        mood[0] = "well"
        await watcher.next()

    watching("decode:8001", resolve, test)
    assert "resolver down" in caplog.text
    assert "no answer on the addresses of decode within 0.05 s" in caplog.text


def test_the_systems_own_resolver() -> None:
    assert "127.0.0.1" in resolve_host("localhost")
    assert resolve_host("127.0.0.1") == ["127.0.0.1"]
