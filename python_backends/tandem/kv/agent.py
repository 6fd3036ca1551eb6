"""One NIXL agent: the KV memory of this process, and what reaches it and what it reaches.

Not thread-safe: made, used and closed by the transfer thread. NIXL's own progress thread stays off (it costs a core,
and made scattered reads three times slower on two), so nothing moves but inside these calls. Memory of a process on
this host is mapped, and ``read`` copies it, without the GIL; notes go to its inbox. All else is NIXL's: device memory,
and what goes over a network, where the calls of both sides move the bytes.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from tandem.errors import TandemError
from tandem.kv.inbox import Inbox
from tandem.kv.memory import Bytes, MappedMemory, Words, map_shared, populate
from tandem.kv.reshard import Run
from tandem.messages import SharedMemory, TransferInfo, TransferNote, decoder, encode

log = logging.getLogger(__name__)

Memory = Literal["DRAM", "VRAM"]

_note_decoder: msgspec.msgpack.Decoder[TransferNote] = decoder(TransferNote)


@dataclass
class Remote:
    """One rank of a peer, ready to be read and to be written to. ``lost`` once any call found the connection broken."""

    info: TransferInfo
    runs: tuple[Run, ...]
    """What is read of each of its blocks; may be nothing."""
    prepared: tuple[Any, Any] | None = None
    """NIXL's lists of our places and of the peer's: run i of block b is number i * num_blocks + b."""
    is_near: bool = False
    """Whether each of us can map the other's memory: then nobody has to look for what the other says or reads."""
    mapped: Bytes | None = None
    """In place of the lists: its memory, [num_blocks, block_bytes]."""
    lease_words: Words | None = None
    """Which of its leases hold; where its memory is mapped."""
    lost: bool = False

    @property
    def name(self) -> str:
        """Agent name, unique for worker, epoch and rank."""
        return self.info.agent_name

    def holds(self, lease_id: int) -> bool:
        """Whether a lease is seen to hold, so that its blocks are what they were when it was granted."""
        words = self.lease_words
        return words is not None and int(words[lease_id % len(words)]) == lease_id

    @property
    def read_bytes(self) -> int:
        """Bytes that are read of each block."""
        return sum(run.length for run in self.runs)


@dataclass
class Read:
    """A read under way. Until ``Agent.has_ended`` says so, the bytes of the local blocks may change."""

    remote: Remote
    handle: Any | None
    """None: all was copied at once."""


class Agent:
    """See the module. Raises TandemError ``transfer_failed``, naming the peer, for whatever NIXL raises."""

    def __init__(
        self,
        name: str,
        address: int,
        block_bytes: int,
        num_blocks: int,
        memory: Memory,
        device_id: int,
        shared: SharedMemory | None,
        inbox: Inbox,
    ) -> None:
        """Registers ``num_blocks`` blocks of ``block_bytes`` from ``address`` on; the memory must outlive the agent.
        ``shared`` is how this host's processes find the same memory."""
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        from nixl_cu13._api import nixl_agent, nixl_agent_config  # slow, and only engine processes need it

        self._inbox = inbox
        self._ours = _array_at(address, num_blocks, block_bytes) if memory == "DRAM" else None
        self._nixl = nixl_agent(name, nixl_agent_config(enable_prog_thread=False))
        self._registered = self._nixl.register_memory([(address, block_bytes * num_blocks, device_id, "")], memory)
        self.info = TransferInfo(
            agent_name=name,
            agent_metadata=self._nixl.get_agent_metadata(),
            address=address,
            block_bytes=block_bytes,
            num_blocks=num_blocks,
            memory=memory,
            device_id=device_id,
            shared=shared,
        )

    def connect(self, info: TransferInfo, runs: tuple[Run, ...] = ()) -> Remote:
        """Load a peer: from now on ``runs`` of its blocks can be read and it can be sent to, and it may send."""
        try:
            self._nixl.add_remote_agent(info.agent_metadata)
            mapped = self._map(info)
            if mapped is not None and runs:
                populate(mapped.array)
                blocks = mapped.array[: info.num_blocks * info.block_bytes].reshape(info.num_blocks, -1)
                return Remote(info, runs, is_near=True, mapped=blocks, lease_words=mapped.lease_words)
            if not runs:
                return Remote(info, runs, is_near=mapped is not None)
            try:
                return Remote(info, runs, prepared=self._prepare_both(info, runs))
            except Exception:
                self._nixl.remove_remote_agent(info.agent_name)
                raise
        except Exception as error:
            raise _failure("connecting to", info.agent_name, error) from error

    def disconnect(self, remote: Remote) -> None:
        """Forget a peer. No read from it may be under way."""
        remote.lost = True
        try:
            for prepared in remote.prepared or ():
                prepared.release()
            self._nixl.remove_remote_agent(remote.name)
        except Exception as error:  # it is gone either way
            log.warning("%s", _failure("disconnecting from", remote.name, error))

    def read(
        self, remote: Remote, local_ids: Sequence[int], remote_ids: Sequence[int], note: TransferNote | None = None
    ) -> Read:
        """Begin to copy the runs of blocks ``remote_ids`` of the peer to our blocks ``local_ids``, in this order.

        ``note`` is sent to the peer as soon as all is there.
        """
        if remote.mapped is not None:
            self._copy(remote, remote.mapped, local_ids, remote_ids)
            if note is not None:
                self.send(remote, note)
            return Read(remote, None)
        if remote.prepared is None:
            raise ValueError(f"no runs of {remote.name} were prepared, so nothing can be read")
        ours, theirs = remote.prepared
        local = _indices(local_ids, self.info.num_blocks, len(remote.runs))
        distant = _indices(remote_ids, remote.info.num_blocks, len(remote.runs))
        try:
            message = b"" if note is None else encode(note)
            handle = self._nixl.make_prepped_xfer("READ", ours, local, theirs, distant, message)
            state = self._nixl.transfer(handle)
        except Exception as error:
            remote.lost = True
            raise _failure("reading from", remote.name, error) from error
        if state == "ERR":
            remote.lost = True
            raise _failure("reading from", remote.name, "NIXL reports an error")
        return Read(remote, handle)

    def has_ended(self, read: Read) -> bool:
        """Whether the read has ended well; raises when it has ended badly. Either way it is over then."""
        if read.handle is None:
            return True
        try:
            state = self._nixl.check_xfer_state(read.handle)
            if state == "PROC":
                return False
            read.handle.release()
        except Exception as error:
            read.remote.lost = True
            raise _failure("reading from", read.remote.name, error) from error
        if state == "ERR":
            read.remote.lost = True
            raise _failure("reading from", read.remote.name, "NIXL reports an error")
        return True

    def send(self, remote: Remote, note: TransferNote) -> None:
        """Send a note. It may still get lost: whoever needs an answer asks again."""
        shared = remote.info.shared
        if remote.is_near and shared is not None and self._inbox.send(shared.token, self.info.agent_name, note):
            return
        try:
            self._nixl.send_notif(remote.name, encode(note))
        except Exception as error:
            remote.lost = True
            raise _failure("sending to", remote.name, error) from error

    def receive(self) -> list[tuple[str, TransferNote]]:
        """Notes that have come, with the agent names of their senders; lets the network move on as well, but where
        somebody near has written: he is answered first, so call again."""
        if notes := self._inbox.receive():
            return notes
        for sender, messages in self._nixl.get_new_notifs().items():
            for data in messages:
                try:
                    notes.append((sender, _note_decoder.decode(data)))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    log.warning("dropped a note of %s: %s", sender, error)
        return notes

    def close(self) -> None:
        """Give the memory back. No read may be under way, and all peers must be disconnected."""
        self._nixl.deregister_memory(self._registered)

    def _map(self, info: TransferInfo) -> MappedMemory | None:
        """All the memory of a peer, if it is on this host."""
        return None if info.shared is None or self.info.shared is None else map_shared(info.shared)

    def _copy(self, remote: Remote, mapped: Bytes, local_ids: Sequence[int], remote_ids: Sequence[int]) -> None:
        assert self._ours is not None
        for here, there, count in _neighbours(local_ids, remote_ids):
            ours, theirs = self._ours[here : here + count], mapped[there : there + count]
            for run in remote.runs:
                target = slice(run.target_offset, run.target_offset + run.length)
                ours[:, target] = theirs[:, run.source_offset : run.source_offset + run.length]

    def _prepare_both(self, info: TransferInfo, runs: tuple[Run, ...]) -> tuple[Any, Any]:
        """Descriptors of all blocks, once; transfers then name them by index, and NIXL merges neighbours."""
        ours = self._prepare("NIXL_INIT_AGENT", self.info, [(run.target_offset, run.length) for run in runs])
        try:
            return ours, self._prepare(info.agent_name, info, [(run.source_offset, run.length) for run in runs])
        except Exception:
            ours.release()
            raise

    def _prepare(self, agent: str, info: TransferInfo, runs: list[tuple[int, int]]) -> Any:
        """Strided rows, one per (offset, length): that much of each block."""
        rows = [
            [info.address + offset, length, info.device_id, info.block_bytes, info.num_blocks]
            for offset, length in runs
        ]
        return self._nixl.prep_xfer_dlist(agent, np.array(rows, dtype=np.uint64), info.memory)


def _indices(block_ids: Sequence[int], num_blocks: int, num_runs: int) -> npt.NDArray[np.int32]:
    """The descriptors of these blocks, block after block."""
    blocks = np.asarray(block_ids, dtype=np.int32)[:, None]
    return (blocks + np.arange(num_runs, dtype=np.int32) * np.int32(num_blocks)).reshape(-1)


def _neighbours(local_ids: Sequence[int], remote_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Blocks that follow one another on both sides, as (first here, first there, how many)."""
    start = 0
    for end in range(1, len(local_ids) + 1):
        follows = end < len(local_ids) and (
            local_ids[end] == local_ids[end - 1] + 1 and remote_ids[end] == remote_ids[end - 1] + 1
        )
        if not follows:
            yield local_ids[start], remote_ids[start], end - start
            start = end


def _array_at(address: int, num_blocks: int, block_bytes: int) -> Bytes:
    """Memory that somebody else keeps: [num_blocks, block_bytes]."""
    raw = (ctypes.c_uint8 * (num_blocks * block_bytes)).from_address(address)
    return np.ctypeslib.as_array(raw).reshape(num_blocks, block_bytes)


def _failure(what: str, agent_name: str, error: object) -> TandemError:
    detail = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
    return TandemError("transfer_failed", f"{what} KV worker {agent_name}: {detail}; is it running and reachable?")
