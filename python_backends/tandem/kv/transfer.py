"""Moves KV blocks between engine processes: pulls on the decode side, answers confirmations on the prefill side.

One thread owns the NIXL agent; everyone else talks to it by commands. NIXL wakes nobody, so the thread has to look:
almost without rest in the few milliseconds in which a pull is expected to end, two thousand times a second while one
is under way, while leases are held the more rarely the longer nobody has come, and twenty times a second while it is
merely paired (for late questions). Each look costs about 25 µs of CPU time, nearly all of it waking up.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Memory, Remote
from tandem.kv.confirmations import Confirmations
from tandem.kv.leases import LeaseTable
from tandem.kv.pull import Pull, PullResult
from tandem.messages import Confirm, Confirmed, KvHandle, NotConfirmed, TransferInfo, TransferNote, WorkerInfo

log = logging.getLogger(__name__)

HASTY_POLL_S = 20e-6
POLL_S = 500e-6
LEASE_POLL_S = (200e-6, 1e-3)
"""Between these: a twentieth of the time since the last grant, so that looking delays a pull by 5 % of it at most."""
IDLE_POLL_S = 50e-3
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 2.0
BUSY_S = 100e-6
"""A look at the network that took longer than this moved bytes of somebody's read; so look again at once."""
_PR_SET_TIMERSLACK = 29
"""linux/prctl.h"""


class Peer:
    """A worker we are paired with; ``remote`` is None until connected, and again after a loss."""

    def __init__(self, info: WorkerInfo, transfer: TransferInfo) -> None:
        self.worker_id, self.epoch, self.transfer = info.worker_id, info.epoch, transfer
        self.remote: Remote | None = None
        self.replaced = False


class KvTransfer:
    """The KV transfer of one engine process. All methods are thread-safe and do not wait, but start and stop."""

    def __init__(
        self,
        agent_name: str,
        address: int,
        block_bytes: int,
        num_blocks: int,
        memory: Memory,
        device_id: int,
        leases: LeaseTable,
        timeout_s: float,
    ) -> None:
        """``agent_name`` is unique for worker and epoch. The memory, ``num_blocks`` times ``block_bytes`` from
        ``address`` on, must outlive the transfer, and best be unwritten yet (huge pages). ``leases`` are those of
        this worker, and their pool is the one that local blocks of pulls come from. ``timeout_s`` limits each step
        of a pull: reading up to 32 MiB, confirming."""
        self._registration = (agent_name, address, block_bytes, num_blocks, memory, device_id)
        self._leases = leases
        self._timeout_s = timeout_s
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._nudged = False
        self._stopping = False
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._ending: TandemError | None = None
        self._thread = threading.Thread(target=self._run, name="kv-transfer", daemon=True)
        self._confirmations = Confirmations(agent_name, leases)
        self._peers: dict[str, Peer] = {}
        """By worker id."""
        self._leaving: list[Peer] = []
        """Replaced by a newer epoch; disconnected when nothing reads from them any more."""
        self._pulls: dict[str, Pull] = {}
        self._stuck: list[Pull] = []
        """Ended for their caller, but a read may still write: their blocks are pinned."""
        self._correlations = itertools.count(1)
        self._granted_at = 0.0
        self._expire_at = 0.0

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
            TandemError: ``worker_incompatible``, its blocks have another size, or it has no transfer.
        """
        block_bytes = self._registration[2]
        if peer.transfer is None or peer.transfer.block_bytes != block_bytes:
            theirs = peer.transfer and peer.transfer.block_bytes
            raise TandemError(
                "worker_incompatible", f"block_bytes of {peer.worker_id!r} is {theirs}, but here it is {block_bytes}"
            )
        new = Peer(peer, peer.transfer)
        self._command(lambda: self._pair(new))

    def pull(
        self,
        request_id: str,
        handle: KvHandle,
        local_block_ids: Sequence[int],
        on_done: Callable[[PullResult], None],
    ) -> None:
        """Copy the handle's blocks to ``local_block_ids``, one to one, and redeem its lease.

        ``on_done`` is called once, from the transfer thread, when it is over. No read writes to the local blocks
        then, with one exception: where a peer has stopped answering in the middle of a read, the result comes at
        the deadline, and those blocks stay pinned: given back to the pool, they are handed out only after the read
        has ended too.
        """
        pull = Pull(request_id, handle, local_block_ids, on_done, self._timeout_s)
        self._command(lambda: self._begin(pull))

    def abort(self, request_id: str) -> None:
        """End a pull with the error ``cancelled``, unless it is over."""
        self._command(lambda: self._abort(request_id))

    def stop(self, timeout_s: float = 10.0) -> None:
        """End all pulls with an error, and the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._stopping or self._failure is not None:
                raise TandemError("transfer_failed", f"the KV transfer has ended ({self._failure or 'stopped'})")
            self._commands.append(command)
            self._wake.notify()

    def _notice_grant(self) -> None:
        with self._wake:
            self._granted_at = time.monotonic()
            self._nudged = True
            self._wake.notify()

    # ------------------------------------------------------------ the transfer thread

    def _run(self) -> None:
        try:
            self._agent = Agent(*self._registration)
        except Exception as error:
            self._failure = error
            self._started.set()
            return
        self._leases.on_grant = self._notice_grant
        _sharpen_timer()
        self._started.set()
        try:
            while not self._stopping:
                if not self._turn():
                    self._rest()
        except Exception as error:
            with self._wake:
                self._failure = error
            self._end_all(TandemError("transfer_failed", f"the KV transfer thread failed: {error!r}"))
            raise  # without this thread the process is of no use: whoever owns it hears of it
        self._end_all(TandemError("transfer_failed", "the KV transfer was stopped"))

    def _turn(self) -> bool:
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
        for pull in list(self._pulls.values()):
            busy |= self._advance(pull)
        if self._stuck or self._leaving:
            self._clean_up()
        if self._leases.held and began >= self._expire_at:
            self._leases.expire()
            self._expire_at = began + IDLE_POLL_S
        return busy

    def _rest(self) -> None:
        """Sleep until the next look at the network; only an idle thread needs to be woken by others."""
        if any(pull.in_haste for pull in self._pulls.values()):
            time.sleep(HASTY_POLL_S)
        elif self._pulls:
            time.sleep(POLL_S)
        elif self._leases.held and self._peers:
            least, most = LEASE_POLL_S
            time.sleep(min(max((time.monotonic() - self._granted_at) / 20, least), most))
        else:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._commands or self._stopping or self._nudged,
                    IDLE_POLL_S if self._peers or self._leases.held else None,
                )
                self._nudged = False

    # ------------------------------------------------------------ peers

    def _pair(self, new: Peer) -> None:
        if self._ending is not None:
            return
        old = self._peers.get(new.worker_id)
        if old is not None:
            if new.epoch < old.epoch or new.transfer == old.transfer:
                return
            old.replaced = True
            self._leaving.append(old)
        self._peers[new.worker_id] = new
        try:
            self._connect(new)
        except TandemError as error:
            log.warning("paired, but %s", error)  # tried again when it is needed

    def _connect(self, peer: Peer) -> Remote:
        """The connection to a peer, made anew where it was lost."""
        if peer.remote is not None and peer.remote.lost and not self._reads_from(peer.remote):
            self._agent.disconnect(peer.remote)
            peer.remote = None
        if peer.remote is None:
            peer.remote = self._agent.connect(peer.transfer)
        if peer.remote.lost:
            raise TandemError("transfer_failed", f"the connection to KV worker {peer.remote.name} is lost")
        return peer.remote

    def _reads_from(self, remote: Remote) -> bool:
        return any(p.read and p.read.remote is remote for p in itertools.chain(self._pulls.values(), self._stuck))

    def _take(self, sender: str, note: TransferNote) -> None:
        peer = next((p for p in self._peers.values() if p.transfer.agent_name == sender), None)
        if isinstance(note, Confirm):
            if peer is not None:  # else it asks again, and by then we may be paired
                self._reply(peer, note)
        else:
            self._settle(sender, note)

    def _reply(self, peer: Peer, question: Confirm) -> None:
        answer = self._confirmations.answer(peer.transfer.agent_name, question)
        try:
            self._agent.send(self._connect(peer), answer)
        except TandemError as error:
            log.warning("an answer is lost: %s", error)

    # ------------------------------------------------------------ pulls

    def _begin(self, pull: Pull) -> None:
        try:
            if self._ending is not None:
                raise self._ending
            peer = self._peer_of(pull)
            self._check_blocks(pull, peer)
            pull.begin(self._agent, self._connect(peer), next(self._correlations))
        except TandemError as error:
            self._end(pull, error)
            return
        self._pulls[pull.request_id] = pull

    def _peer_of(self, pull: Pull) -> Peer:
        if pull.request_id in self._pulls:
            raise TandemError("invalid_request", f"request {pull.request_id!r} has a pull under way")
        handle = pull.handle
        peer = self._peers.get(handle.worker_id)
        if peer is None:
            raise TandemError("handle_unknown_worker", f"handle: not paired with worker {handle.worker_id!r}")
        if peer.epoch != handle.epoch:
            raise TandemError(
                "handle_stale_epoch",
                f"handle: from epoch {handle.epoch:x} of worker {handle.worker_id!r}, which is in {peer.epoch:x}",
            )
        return peer

    def _check_blocks(self, pull: Pull, peer: Peer) -> None:
        theirs, ours = pull.handle.block_ids, pull.local_ids
        if len(theirs) != len(ours):
            raise TandemError("handle_malformed", f"handle: {len(theirs)} blocks for {len(ours)} local ones")
        for ids, num_blocks in ((theirs, peer.transfer.num_blocks), (ours, self._registration[3])):
            if not ids or min(ids) < 0 or max(ids) >= num_blocks:
                raise TandemError("handle_malformed", f"handle: needs block ids from 0 to {num_blocks - 1}: {ids[:8]}")

    def _advance(self, pull: Pull) -> bool:
        peer = self._peers.get(pull.handle.worker_id)
        if peer is None or peer.remote is not pull.remote:
            pull.stop(TandemError("transfer_failed", f"KV worker {pull.remote.name} was lost or restarted"))
        try:
            return pull.step()
        except TandemError as error:
            self._end(pull, error)
            return True

    def _settle(self, sender: str, answer: Confirmed | NotConfirmed) -> None:
        for pull in self._pulls.values():
            if pull.correlation == answer.correlation and pull.remote.name == sender:
                refusal = TandemError(answer.code, answer.message) if isinstance(answer, NotConfirmed) else None
                self._end(pull, refusal)
                return

    def _abort(self, request_id: str) -> None:
        if pull := self._pulls.get(request_id):
            pull.stop(TandemError("cancelled", f"the pull of request {request_id!r} was cancelled"))

    def _end(self, pull: Pull, error: TandemError | None) -> None:
        if self._pulls.get(pull.request_id) is pull:
            del self._pulls[pull.request_id]
        if pull.read is not None:
            self._leases.pool.pin(pull.local_ids)
            self._stuck.append(pull)
        try:
            pull.end(error)
        except Exception:
            log.exception("on_done of request %s failed", pull.request_id)

    def _clean_up(self) -> None:
        """Unpin the blocks of reads that have ended at last, and drop replaced peers that nothing reads from."""
        for pull in list(self._stuck):
            if pull.read_has_ended():
                self._stuck.remove(pull)
                self._leases.pool.unpin(pull.local_ids)
        for peer in list(self._leaving):
            if peer.remote is None or not self._reads_from(peer.remote):
                self._leaving.remove(peer)
                if peer.remote is not None:
                    self._agent.disconnect(peer.remote)

    def _end_all(self, reason: TandemError) -> None:
        """The last act of the thread: everybody who waits hears why nothing will come."""
        self._ending = reason
        while self._commands:
            self._commands.popleft()()  # those that begin a pull end it at once
        deadline = time.monotonic() + END_TIMEOUT_S
        for pull in list(self._pulls.values()):
            while pull.read is not None and not pull.read_has_ended() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            self._end(pull, reason)


def _sharpen_timer() -> None:
    """Let this thread's short sleeps be short: the kernel may stretch them by 1 µs, not by the usual 50."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000))
