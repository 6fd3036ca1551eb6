"""The watch over clients that leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tandem.api.cancel_watch import CancelWatch
from tests.unit.api.channel import Channel

DEADLINE_S = 20.0


class Asked(Channel):
    """Counts how often it was asked, and may be unable to tell."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self._times = threading.Semaphore(0)

    def is_cancelled(self) -> bool:
        self._times.release()
        if self.broken:
            raise RuntimeError("no answer")
        return self.left

    def wait_until_asked(self, times: int) -> None:
        for _ in range(times):
            assert self._times.acquire(timeout=DEADLINE_S)

    def was_asked(self) -> bool:
        return self._times.acquire(blocking=False)


@pytest.fixture
def watch() -> Iterator[CancelWatch]:
    watch = CancelWatch()
    watch.start()
    yield watch
    watch.stop()


def test_a_client_that_leaves_is_noticed_once(watch: CancelWatch) -> None:
    gone, other, called = Asked(), Asked(), list[str]()
    noticed = threading.Event()

    def note() -> None:
        called.append("gone")
        noticed.set()

    watch.add(gone, note)
    watch.add(other, lambda: called.append("other"))
    other.wait_until_asked(2)
    assert called == []
    gone.left = True
    assert noticed.wait(DEADLINE_S)
    while gone.was_asked():
        pass
    other.wait_until_asked(3)
    assert called == ["gone"]
    assert not gone.was_asked()  # it is forgotten


def test_a_response_that_ended_is_forgotten(watch: CancelWatch) -> None:
    ended, other, called = Asked(), Asked(), list[str]()
    watch.add(ended, lambda: called.append("ended"))
    watch.add(other, lambda: None)
    ended.wait_until_asked(1)
    ended.send({}, final=True)
    other.wait_until_asked(2)
    while ended.was_asked():
        pass
    ended.left = True
    while other.was_asked():
        pass
    other.wait_until_asked(3)
    assert called == []
    assert not ended.was_asked()


def test_the_watch_survives_what_it_cannot_ask_and_who_cannot_listen(watch: CancelWatch) -> None:
    broken, deaf, noticed = Asked(broken=True), Asked(), threading.Event()
    heard = threading.Event()

    def fail() -> None:
        heard.set()
        raise RuntimeError("not now")

    watch.add(broken, lambda: None)
    watch.add(deaf, fail)
    deaf.left = True
    assert heard.wait(DEADLINE_S)
    broken.wait_until_asked(2)
    broken.broken, broken.left = False, True
    third = Asked()
    third.left = True
    watch.add(third, noticed.set)
    assert noticed.wait(DEADLINE_S)


def test_nobody_is_asked_after_the_stop() -> None:
    watch, client = CancelWatch(), Asked()
    watch.start()
    watch.add(client, lambda: None)
    client.wait_until_asked(1)
    watch.stop()
    watch._thread.join(DEADLINE_S)
    assert not watch._thread.is_alive()
