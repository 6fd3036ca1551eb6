"""The guard of a rank: its parent process, which tells how it ended, and leaves nothing of it on this host.

mpiexec knows the guard's parent alone, and takes it for the rank: as long as that stays, no implementation of MPI ends
the other ranks for the death of this one. So the supervisor hears of the first death, whatever might come of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from pathlib import Path

import msgspec
import psutil

from tandem.messages import Heartbeat
from tandem.parallel import heartbeat, processes, shared_memory

log = logging.getLogger(__name__)

TICK_MS = 200
LINGER_S = 5.0
"""How long a guard whose rank has ended waits to be ended."""
LOADING_LIMIT_S = 660.0
"""The stage has given the group up before."""
HANGS = 3.0
"""Times the group's limit: a rank that has not got on for as long would have been ended, could its supervisor do so."""
PAUSE_S = 2.0
"""Who has not looked for as long may have stood still itself."""
LAUNCHER_TIMEOUT_S = 1.0
READ_BYTES = 1 << 16
_beat_decoder = msgspec.json.Decoder(Heartbeat)


def split(hang_timeout_s: float) -> int:
    """Fork twice: the rank goes on in the grandchild, with what it says on stdout sent to stderr. Its guard, and this
    process, do not return.

    Returns:
        Where the rank's heartbeats are to be written to.
    """
    launcher, stand_in = os.getppid(), os.getpid()
    processes.die_with_parent(launcher)
    place = shared_memory.find_place()
    if (guard := os.fork()) != 0:  # mpiexec kills what it has started, but not what that has
        os.waitpid(guard, 0)
        os._exit(1)
    os.setsid()
    guard = os.getpid()
    heard, said = os.pipe()
    if (rank := os.fork()) == 0:
        processes.die_with_parent(guard)
        os.setsid()
        os.close(heard)
        os.dup2(2, 1)
        return said
    os.close(said)
    try:
        _Guard(rank, stand_in, launcher, heard, place, hang_timeout_s).run()
    except Exception:
        log.exception("the guard of a rank failed")
    os._exit(1)


class _Guard:
    """Passes a rank's heartbeats on to mpiexec until the rank, mpiexec's process here or the whole group is gone."""

    def __init__(
        self, rank: int, stand_in: int, launcher: int, heard: int, place: Path | None, hang_timeout_s: float
    ) -> None:
        """``stand_in`` is the process that mpiexec knows, ``launcher`` the one that it was started by; ``place`` is
        where MPI has its shared memory."""
        self._rank, self._launcher, self._heard, self._place = rank, launcher, heard, place
        self._patience_s = HANGS * hang_timeout_s
        self._began = self._looked = self._advanced = time.monotonic()
        self._last = Heartbeat(pid=rank, phase="loading", progress=0)
        self._tail = b""
        self._ended: float | None = None
        """When the rank was seen to have ended."""
        os.set_blocking(heard, False)
        self._end, self._over = os.pidfd_open(rank), os.pidfd_open(stand_in)
        self._poll = select.poll()
        for fd in (heard, self._end, self._over):
            self._poll.register(fd, select.POLLIN)
        self._poll.register(1, 0)  # tells when nobody reads it any more

    def run(self) -> None:
        """Stay until the rank has ended, and nothing of it is left."""
        by_itself = False
        while not by_itself:
            ready = {fd for fd, _ in self._poll.poll(TICK_MS)}
            if self._heard in ready:
                self._pass_on()
            if self._end in ready:
                self._tell_end()
            if ready.intersection((self._over, 1)):
                break
            by_itself = self._is_alone(time.monotonic())
        if self._ended is None:
            self._end_rank()
        shared_memory.remove_place(self._place)
        if by_itself:
            self._end_launcher()

    def _pass_on(self) -> None:
        try:
            data = os.read(self._heard, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            with contextlib.suppress(KeyError):  # done before
                self._poll.unregister(self._heard)
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):
                self._take(_beat_decoder.decode(line))
            self._say(line)

    def _take(self, beat: Heartbeat) -> None:
        if beat.progress != self._last.progress or beat.phase != self._last.phase:
            self._advanced = time.monotonic()
        self._last = beat

    def _say(self, line: bytes) -> None:
        """Nothing, rather than wait for mpiexec's process, which may be cut off and take no more."""
        writable = select.poll()
        writable.register(1, select.POLLOUT)
        if writable.poll(0) == [(1, select.POLLOUT)]:
            os.write(1, heartbeat.PREFIX + line + b"\n")

    def _tell_end(self) -> None:
        """Of a rank that has not told of its end itself."""
        self._pass_on()
        self._poll.unregister(self._end)
        self._ended = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._rank, signal.SIGKILL)  # what it has started
        code = os.waitstatus_to_exitcode(os.waitpid(self._rank, 0)[1])
        shared_memory.remove_place(self._place)  # now: who hears of the end may kill this process
        if self._last.phase in ("stopped", "failed"):
            self._ended -= LINGER_S  # it has waited itself
            return
        if code < 0:
            # MPI aborts a rank that lost the connection to another one; it sends no other signal
            phase, message = "exited" if -code == signal.SIGABRT else "killed", f"was killed by {_name(-code)}"
        else:
            phase, message = "exited", f"has ended with exit status {code}"
        self._last = msgspec.structs.replace(self._last, pid=self._rank, phase=phase, message=message)
        self._say(msgspec.json.encode(self._last))

    def _is_alone(self, now: float) -> bool:
        """Whether the supervisor, were it there, had ended the group."""
        if now - self._looked > PAUSE_S:
            self._advanced += now - self._looked
        self._looked = now
        if self._ended is not None:
            return now - self._ended > LINGER_S
        if self._last.phase == "loading" or self._last.progress == 0:
            return now - self._began > LOADING_LIMIT_S
        return now - self._advanced > self._patience_s

    def _end_rank(self) -> None:
        with contextlib.suppress(psutil.Error):
            rank = psutil.Process(self._rank)
            for process in (*rank.children(recursive=True), rank):
                process.kill()
            rank.wait(processes.END_TIMEOUT_S)  # it may be making files until then

    def _end_launcher(self) -> None:
        """mpiexec's process on this host, which may wait for a host that it cannot reach."""
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(self._launcher)
            if psutil.Process(os.getppid()).parent() == launcher:
                launcher.terminate()
                launcher.wait(LAUNCHER_TIMEOUT_S)
        with contextlib.suppress(psutil.Error):
            launcher.kill()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
