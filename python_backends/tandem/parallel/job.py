"""One MPI job as its supervisor has it: mpiexec, and what its ranks say."""

from __future__ import annotations

import contextlib
import math
import os
import re
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from tandem.parallel import processes
from tandem.parallel.heartbeat import LAST_WORDS
from tandem.parallel.output import Demultiplexer, Line
from tandem.parallel.verdict import Word

READ_BYTES = 1 << 16
WORDS = 50
"""Last lines on stderr that are kept, to tell why mpiexec ended by itself."""


class Job:
    """A started mpiexec. Used by one thread."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        marker: re.Pattern[bytes],
        *,
        on_output: Callable[[int, bytes], None],
        on_words: Callable[[int | None, str], None],
    ) -> None:
        """``on_output`` gets what ranks say on stdout, ``on_words`` what they and mpiexec say on stderr.

        Raises:
            OSError: the process cannot be made.
        """
        self._on_output, self._on_words = on_output, on_words
        self._selector = selectors.DefaultSelector()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            preexec_fn=partial(processes.die_with_parent, os.getpid()),
        )
        self._words: deque[Word] = deque(maxlen=WORDS)
        self._silent: set[int | None] = set()
        """Ranks that have said their last words."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._open = 2
        """Streams that have not come to their end."""
        for stream, take in ((self._process.stdout, self._take_output), (self._process.stderr, self._take_words)):
            os.set_blocking(stream.fileno(), False)
            self.listen(stream.fileno(), partial(self._read, stream.fileno(), Demultiplexer(marker), take))

    def listen(self, fd: int, call: Callable[[], None]) -> None:
        """Have ``step`` call ``call`` whenever there is something to read at ``fd``."""
        self._selector.register(fd, selectors.EVENT_READ, call)

    def unlisten(self, fd: int) -> None:
        """No longer."""
        self._selector.unregister(fd)

    def step(self, timeout_s: float) -> None:
        """Take what is there; wait for it at most ``timeout_s``."""
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def status(self) -> int | None:
        """mpiexec's exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def drain(self, timeout_s: float, ranks: float = math.inf) -> None:
        """Take what is left of the output of a job that ends, until its end, or until so many ``ranks`` that stop in
        good order have said their last words; wait at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self._open and len(self._silent) < ranks and (left := deadline - time.monotonic()) > 0:
            self.step(left)

    def words(self) -> list[Word]:
        """The last lines on stderr."""
        return list(self._words)

    def terminate(self, timeout_s: float) -> None:
        """Ask mpiexec to end the job, and wait a little for it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End mpiexec at once."""
        self._process.kill()

    def close(self) -> None:
        """Reap mpiexec, which has been ended, and give everything back."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(processes.END_TIMEOUT_S)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
        self._selector.close()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()

    def _read(self, fd: int, lines: Demultiplexer, take: Callable[[Line], None]) -> None:
        data = os.read(fd, READ_BYTES)
        for line in lines.feed(data) if data else lines.finish():
            take(line)
        if not data:
            self.unlisten(fd)
            self._open -= 1

    def _take_output(self, line: Line) -> None:
        rank, text = line
        if rank is not None:
            self._on_output(rank, text)
        else:
            self._take_words(line)

    def _take_words(self, line: Line) -> None:
        rank, data = line
        if data == LAST_WORDS:
            self._silent.add(rank)
            return
        text = data.decode(errors="replace").rstrip()
        self._words.append((rank, text))
        self._on_words(rank, text)
