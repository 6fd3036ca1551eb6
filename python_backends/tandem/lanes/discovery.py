"""Where the workers of a deployment are: looks up the names in their addresses, again and again.

A lookup blocks for as long as the system's resolver likes, so each has a thread of its own, and the event loop waits
for it no longer than ``ANSWER_S``; one that is still under way is not begun a second time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable

from tandem.deployment import Worker

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 2.0
ANSWER_S = 5.0

Resolve = Callable[[str], list[str]]
"""Host name → the numbers of its addresses now, none where nobody has the name. Raises OSError when it cannot tell."""
Found = Callable[[Worker, set[str]], None]
"""Takes all addresses (host:port, as numbers) of one worker entry; called in the event loop after every look."""


def resolve_host(host: str) -> list[str]:
    """Ask the system: /etc/hosts, DNS. See ``Resolve``."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return []
        raise
    return [str(address[0]) for *_, address in found]


def addresses_of(worker: Worker, resolve: Resolve = resolve_host) -> set[str]:
    """All addresses of a worker entry now, as numbers. Blocks; raises OSError where the resolver cannot tell."""
    places = [_split(address) for address in worker.addresses]
    return {_join(number, port) for host, port in places for number in resolve(host)}


class Discovery:
    """Follows the addresses of ``workers``. Lives in the event loop."""

    def __init__(self, workers: Iterable[Worker], found: Found, resolve: Resolve = resolve_host) -> None:
        self._workers = [worker for worker in workers if worker.addresses]
        self._found = found
        self._resolve = resolve
        self._known: dict[str, list[str]] = {}
        """By host name: what the last lookup that could tell has said."""
        self._pending: dict[str, asyncio.Future[list[str]]] = {}

    async def run(self) -> None:
        """Look now, and then every ``LOOK_AGAIN_S``, until cancelled."""
        await asyncio.gather(*(self._follow(worker) for worker in self._workers))

    async def _follow(self, worker: Worker) -> None:
        while True:
            places = [_split(address) for address in worker.addresses]
            found = await asyncio.gather(*(self._look_up(host) for host, _ in places))
            self._found(
                worker, {_join(n, port) for numbers, (_, port) in zip(found, places, strict=True) for n in numbers}
            )
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _look_up(self, host: str) -> list[str]:
        """The addresses of a host; as before, where that cannot be told now."""
        lookup = self._pending.get(host)
        if lookup is None:
            lookup = self._pending[host] = self._begin(host)

            def ended(lookup: asyncio.Future[list[str]]) -> None:
                lookup.exception()  # known now, even if nobody waits for it any more
                del self._pending[host]

            lookup.add_done_callback(ended)
        done, _ = await asyncio.wait({lookup}, timeout=ANSWER_S)
        if not done:
            log.warning("no answer on the addresses of %s within %g s; still taken to be as before", host, ANSWER_S)
        elif (error := lookup.exception()) is not None:
            log.warning("the addresses of %s cannot be found: %s; still taken to be as before", host, error)
        else:
            self._known[host] = lookup.result()
        return self._known.get(host, [])

    def _begin(self, host: str) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[list[str]] = loop.create_future()

        def end(numbers: list[str], error: Exception | None) -> None:
            if lookup.done():
                return
            if error is None:
                lookup.set_result(numbers)
            else:
                lookup.set_exception(error)

        def look() -> None:
            numbers, failure = [], None
            try:
                numbers = self._resolve(host)
            except Exception as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, numbers, failure)

        threading.Thread(target=look, name=f"look-up-{host}", daemon=True).start()
        return lookup


def _split(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def _join(number: str, port: str) -> str:
    return f"[{number}]:{port}" if ":" in number else f"{number}:{port}"
