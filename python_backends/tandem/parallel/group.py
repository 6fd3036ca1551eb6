"""This process's place in an engine group, and what leader and followers say to each other: orders and reports.

Messages go from rank to rank over MPI, on a communicator of their own. Who waits for one naps between looks: a rank
that has nothing to do must not burn a core, as the blocking calls of MPI do. The collectives of a step may spin.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tandem.errors import TandemError
from tandem.messages import Orders, Partition, ReadEnded, decoder, encode
from tandem.parallel import heartbeat

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger(__name__)
T = TypeVar("T")

ORDERS_TAG, REPORT_TAG = 1, 2
SIGN_OF_LIFE_S = 0.5
"""Most time between two orders."""
HASTE_S = 0.02
"""A step rarely comes alone: for this long after an order the next one is looked for without much rest."""
HASTY_NAP_S = 50e-6
NAP_S = 1e-3
PART_TIMEOUT_S = 2.0


class LeaderLost(Exception):
    """No orders for too long: the leader, its host or the way to it is gone."""


class RankGroup:
    """One rank of an engine group. Orders and reports are each used by one thread."""

    _current: RankGroup | None = None

    def __init__(self, partition: Partition, comm: MPI.Intracomm | None) -> None:
        """``comm`` has as many ranks as ``partition``; None for a group of one."""
        self.partition = partition
        self.comm = comm
        self.rank = comm.Get_rank() if comm is not None else 0
        self.size = partition.size
        self._talk: MPI.Intracomm | None = comm.Dup() if comm is not None else None
        self._sending: list[tuple[MPI.Request, bytes]] = []
        """Requests of messages that may be on their way, with the memory they are sent from."""
        self._orders_decoder: msgspec.msgpack.Decoder[Orders] = decoder(Orders)
        self._report_decoder: msgspec.msgpack.Decoder[ReadEnded] = decoder(ReadEnded)

    @classmethod
    def join(cls, partition: Partition) -> RankGroup:
        """Join the MPI job that this process was started in; ``current`` knows the group from now on.

        Raises:
            TandemError: ``engine_failed``: the job has another number of ranks.
        """
        from mpi4py import MPI  # initialises MPI

        comm = MPI.COMM_WORLD
        if comm.Get_size() != partition.size:
            raise TandemError(
                "engine_failed",
                f"mpiexec started {comm.Get_size()} ranks for a group of {partition.size}; is mpiexec of the same MPI "
                f"as the library that mpi4py loads ({MPI.Get_library_version().splitlines()[0]})?",
            )
        cls._current = cls(partition, comm)
        return cls._current

    @classmethod
    def current(cls) -> RankGroup:
        """The group that this process joined; a group of one if it joined none."""
        return cls._current or cls(Partition(), None)

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # ------------------------------------------------------------ while loading: all ranks call the same

    def share(self, value: T | None) -> T:
        """The leader's ``value``, on every rank."""
        result: Any = value if self._talk is None else self._talk.bcast(value, 0)
        return result  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""
        return [value] if self._talk is None else self._talk.allgather(value)

    # ------------------------------------------------------------ leader

    def order(self, orders: Orders) -> None:
        """Send ``orders`` to all followers, without waiting for them."""
        self._forget_sent()
        data = encode(orders)
        for follower in range(1, self.size):
            self._send(data, follower, ORDERS_TAG)
        heartbeat.advance()

    def reports(self) -> list[ReadEnded]:
        """What followers have said since the last call; does not wait."""
        reports = []
        while (data := self._receive(REPORT_TAG)) is not None:
            reports.append(self._report_decoder.decode(data))
        return reports

    # ------------------------------------------------------------ follower

    def wait_for_orders(self, timeout_s: float, meanwhile: Callable[[], None]) -> Orders:
        """The leader's next orders; ``meanwhile`` is called now and then until they come.

        Raises:
            LeaderLost: none came for ``timeout_s``.
        """
        began = time.monotonic()
        while (data := self._receive(ORDERS_TAG)) is None:
            meanwhile()
            waited = time.monotonic() - began
            if waited > timeout_s:
                raise LeaderLost(f"no orders for {timeout_s:g} s: the leader, its host or the way to it is gone")
            time.sleep(HASTY_NAP_S if waited < HASTE_S else NAP_S)
        heartbeat.advance()
        return self._orders_decoder.decode(data)

    def report(self, ended: ReadEnded) -> None:
        """Tell the leader."""
        self._forget_sent()
        self._send(encode(ended), 0, REPORT_TAG)

    # ------------------------------------------------------------ both

    def part(self) -> None:
        """Let what was sent leave; call before the process ends in good order."""
        deadline = time.monotonic() + PART_TIMEOUT_S
        while self._sending and time.monotonic() < deadline:
            self._forget_sent()
            time.sleep(NAP_S)

    def _send(self, data: bytes, rank: int, tag: int) -> None:
        assert self._talk is not None
        self._sending.append((self._talk.Isend(data, rank, tag), data))

    def _forget_sent(self) -> None:
        self._sending = [(request, data) for request, data in self._sending if not request.Test()]

    def _receive(self, tag: int) -> bytes | None:
        """One message with ``tag`` if one is there."""
        if self._talk is None:
            return None
        from mpi4py import MPI

        status = MPI.Status()
        message = self._talk.Improbe(MPI.ANY_SOURCE, tag, status)
        if message is None:
            return None
        data = bytearray(status.Get_count(MPI.BYTE))
        message.Recv(data)
        return bytes(data)
