"""The transfer thread of one rank: makes the NIXL agent, does what others ask for, and looks at the network between.

Common to a group's leader (``transfer.py``) and its followers (``reader.py``), who differ in what a read is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypedDict

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Memory, Remote
from tandem.kv.handle import find_transfer_problems
from tandem.kv.inbox import Inbox
from tandem.kv.part import PartRead
from tandem.kv.peers import LEADER, Peer, Peers
from tandem.kv.reshard import block_bytes_of, plan_parts
from tandem.messages import KvFormat, Partition, SharedMemory, TransferInfo, TransferNote, WorkerInfo

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the library's from Python 3.11 on

RESTLESS_S = 500e-6
"""For so long after a step began its end is looked for without rest: a short sleep takes 60 to 100 µs with waking."""
HASTE_S = 0.005
"""A step has usually ended after this; a longer one is not worth looking for so often."""
HASTY_POLL_S = 20e-6
POLL_S = 500e-6
SERVE_POLL_S = (50e-6, 1e-3)
"""Between these: a twentieth of the time since peers may read here, so that looking delays a pull by 5 % at most, also
the 1 ms that a few MiB take: at 200 µs their confirmation took as long as the read."""
IDLE_POLL_S = 50e-3
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 2.0
BUSY_S = 100e-6
"""A look at the network that took longer than this moved bytes of somebody's read; so look again at once."""
_PR_SET_TIMERSLACK = 29
"""linux/prctl.h"""


class Place(TypedDict):
    """The KV memory of a rank, and what it is a part of."""

    agent_name: str
    """Unique for worker, epoch and rank."""
    address: int
    """Where ``num_blocks`` times ``block_bytes`` start. They must outlive the transfer."""
    shared: SharedMemory | None
    """How this host's processes find them."""
    block_bytes: int
    num_blocks: int
    memory: Memory
    device_id: int
    timeout_s: float
    """Limits each step of a pull: reading up to 32 MiB from one rank, confirming."""
    kv: KvFormat
    partition: Partition


class TransferThread(ABC):
    """See the module. Public methods are thread-safe and do not wait, but start and stop."""

    def __init__(
        self,
        rank: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        make_agent: Callable[..., Agent] = Agent,
        **place: Unpack[Place],
    ) -> None:
        """``clock`` is what steps of pulls are timed by; ``make_agent`` is called as ``Agent`` is.

        Raises:
            ValueError: the block size is not what ``rank`` holds of a block.
        """
        self._rank, self._place = rank, place
        self._clock, self._make_agent = clock, make_agent
        if place["block_bytes"] != (expected := block_bytes_of(place["partition"], rank, place["kv"])):
            raise ValueError(f"block_bytes is {place['block_bytes']}, but rank {rank} holds {expected} of a block")
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        """Between those who command and the end."""
        shared = place["shared"]
        self._inbox = Inbox(shared.token if shared else None)
        self._stopping = False
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._ending: TandemError | None = None
        self._thread = threading.Thread(target=self._run, name="kv-transfer", daemon=True)
        self._serving_since = 0.0

    # ------------------------------------------------------------ for the engine

    def start(self) -> None:
        """Make the agent and register the memory.

        Raises:
            TandemError: ``engine_failed``, with what NIXL says.
        """
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise TandemError("engine_failed", f"NIXL: no agent within {START_TIMEOUT_S:g} s")
        if self._failure is not None:
            raise TandemError("engine_failed", f"NIXL: {self._failure}; see `tandem doctor`") from self._failure

    @property
    def info(self) -> TransferInfo:
        """What peers need to know; valid after ``start``."""
        return self._agent.info

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to exchange KV with ``peer``. A newer epoch replaces an older one, an older one is ignored.

        Raises:
            TandemError: ``worker_incompatible``: its transfers are not those of its partition.
        """
        if problems := find_transfer_problems(peer, self._place["kv"]):
            raise TandemError("worker_incompatible", "; ".join(problems))
        parts = plan_parts(peer.partition, self._place["partition"], self._rank, self._place["kv"])
        new = Peer(peer, parts, to_leader=self._rank == LEADER)
        self._command(lambda: self._pair(new))

    def unpair(self, worker_id: str) -> None:
        """Forget a peer that is gone for good; an unknown one is no error."""
        with contextlib.suppress(TandemError):  # a transfer that has ended has no peers
            self._command(lambda: self._peers.remove(worker_id))

    def stop(self, timeout_s: float = 10.0) -> None:
        """End all reads with an error, and the thread."""
        with self._lock:
            self._stopping = True
        self._inbox.ring()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _command(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._stopping or self._failure is not None:
                raise TandemError("transfer_failed", f"the KV transfer has ended ({self._failure or 'stopped'})")
            self._commands.append(command)
        self._inbox.ring()

    def _note_serving(self) -> None:
        """From now on peers may read here."""
        self._serving_since = self._clock()
        self._inbox.ring()

    # ------------------------------------------------------------ what leader and followers do differently

    @abstractmethod
    def _parts(self) -> Iterable[PartRead]:
        """All reads that are wanted or may still write."""

    @abstractmethod
    def _is_serving(self) -> bool:
        """Whether peers may be reading from this rank."""

    @abstractmethod
    def _busy_since(self) -> float | None:
        """When the newest step of what is under way through NIXL began (monotonic clock); None: nothing is."""

    @abstractmethod
    def _take(self, sender: str, note: TransferNote) -> None:
        """A note has come."""

    @abstractmethod
    def _advance(self) -> bool:
        """Go on with everything that is under way; whether anything happened."""

    @abstractmethod
    def _end_all(self, reason: TandemError) -> None:
        """The last act: end everything with ``reason``. No read is under way, unless it hangs."""

    # ------------------------------------------------------------ the thread, or whoever takes its part

    def open(self) -> None:
        """Make the agent; raises whatever that does."""
        self._agent = self._make_agent(
            self._place["agent_name"],
            self._place["address"],
            self._place["block_bytes"],
            self._place["num_blocks"],
            self._place["memory"],
            self._place["device_id"],
            self._place["shared"],
            self._inbox,
        )
        self._peers = Peers(
            self._agent, lambda remote: any(part.reads_from(remote) for part in self._parts()), self._check_stuck
        )

    def _run(self) -> None:
        try:
            self.open()
        except Exception as error:
            self._failure = error
            self._started.set()
            return
        _sharpen_timer()
        self._started.set()
        try:
            while not self._stopping:
                if not self.turn():
                    self._rest()
        except Exception as error:
            with self._lock:
                self._failure = error
            self._end(TandemError("transfer_failed", f"the KV transfer thread failed: {error!r}"))
            raise  # without this thread the process is of no use: whoever owns it hears of it
        self._end(TandemError("transfer_failed", "the KV transfer was stopped"))

    def turn(self) -> bool:
        """Everything that can be done now; whether anything was."""
        began = time.monotonic()
        busy = False
        while self._commands:
            self._commands.popleft()()
            busy = True
        for sender, note in self._agent.receive():
            self._take(sender, note)
            busy = True
        busy |= time.monotonic() - began > BUSY_S
        busy |= self._advance()
        self._peers.clean_up()
        return busy

    def _rest(self) -> None:
        """Sleep until the next look at the network. Where it is not needed, whoever wants something rings."""
        since = self._busy_since()
        if since is not None:
            waited = self._clock() - since
            if waited > RESTLESS_S:
                time.sleep(HASTY_POLL_S if waited < HASTE_S else POLL_S)
        elif self._is_serving() and self._peers.any_far:
            least, most = SERVE_POLL_S
            time.sleep(min(max((self._clock() - self._serving_since) / 20, least), most))
        else:
            self._inbox.wait(IDLE_POLL_S if self._peers or self._is_serving() else None)

    def _pair(self, new: Peer) -> None:
        if self._ending is None:
            self._peers.add(new)

    def _find_peer(self, part: PartRead) -> Peer:
        """Whom a part is read from.

        Raises:
            TandemError: it cannot be read now.
        """
        if self._ending is not None:
            raise self._ending
        return self._peers.find(part.handle)

    def _check_stuck(self, remote: Remote) -> None:
        for part in self._parts():
            part.check_stuck(remote)

    def _prepare(self, part: PartRead, peer: Peer) -> None:
        """Get ready to read.

        Raises:
            TandemError: why it cannot be.
        """
        part.prepare(self._agent, [self._peers.connect(peer, rank) for rank in peer.source_ranks])

    def _end(self, reason: TandemError) -> None:
        """Everybody who waits hears why nothing will come."""
        self._ending = reason
        while self._commands:
            self._commands.popleft()()  # those that begin a read end it at once
        deadline = time.monotonic() + END_TIMEOUT_S
        while not all(part.has_settled() for part in self._parts()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._end_all(reason)


def _sharpen_timer() -> None:
    """Let this thread's short sleeps be short: the kernel may stretch them by 1 µs, not by the usual 50."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000))
