"""Whom a rank moves KV with: the workers it is paired with, and its connections to their ranks.

Not thread-safe: used by the transfer thread alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from tandem.errors import TandemError
from tandem.kv.agent import Agent, Remote
from tandem.kv.reshard import Part
from tandem.messages import KvHandle, WorkerInfo

log = logging.getLogger(__name__)

LEADER = 0
"""The rank that grants the leases of its group, redeems them and is asked about them."""


class Peer:
    """A worker we are paired with. Connections are made anew where they were lost."""

    def __init__(self, info: WorkerInfo, parts: list[Part], to_leader: bool) -> None:
        """``parts``: what is read from its ranks; ``to_leader``: whether notes go to its leader, read from or not."""
        self.info = info
        self.runs = {part.source_rank: part.runs for part in parts}
        self.source_ranks = sorted(self.runs)
        self.ranks = sorted({*self.runs, LEADER}) if to_leader else self.source_ranks
        """Those that are connected to."""
        self.remotes: dict[int, Remote] = {}
        """By rank, as far as they are connected."""

    @property
    def leader_name(self) -> str:
        """The agent name of its leader."""
        return self.info.transfers[LEADER].agent_name


class Peers:
    """See the module. ``reads_from`` says whether a read from a connection is under way, so that it has to stay;
    ``check_stuck`` raises where that will not change."""

    def __init__(
        self, agent: Agent, reads_from: Callable[[Remote], bool], check_stuck: Callable[[Remote], None]
    ) -> None:
        self._agent, self._reads_from, self._check_stuck = agent, reads_from, check_stuck
        self._peers: dict[str, Peer] = {}
        """By worker id."""
        self._leaving: list[Remote] = []
        """Of workers that were replaced or removed; disconnected when nothing reads from them any more."""

    def __bool__(self) -> bool:
        return bool(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    @property
    def any_far(self) -> bool:
        """Whether any of them reaches us through NIXL alone."""
        return any(not remote.is_near for peer in self for remote in peer.remotes.values())

    def add(self, new: Peer) -> None:
        """Connect. A newer epoch replaces an older one, an older one is ignored."""
        old = self._peers.get(new.info.worker_id)
        if old is not None:
            if new.info.epoch < old.info.epoch or new.info.transfers == old.info.transfers:
                return
            self.remove(new.info.worker_id)
        self._peers[new.info.worker_id] = new
        try:
            for rank in new.ranks:
                self.connect(new, rank)
        except TandemError as error:
            log.warning("paired, but %s", error)  # tried again when it is needed

    def remove(self, worker_id: str) -> None:
        """Forget a peer, if it is one; connections are given up as soon as nothing reads from them."""
        peer = self._peers.pop(worker_id, None)
        if peer is not None:
            for remote in peer.remotes.values():
                remote.lost = True
                self._leaving.append(remote)

    def find(self, handle: KvHandle) -> Peer:
        """The peer that the handle is from.

        Raises:
            TandemError: ``handle_unknown_worker`` or ``handle_stale_epoch``.
        """
        peer = self._peers.get(handle.worker_id)
        if peer is None or not peer.source_ranks:
            raise TandemError("handle_unknown_worker", f"handle: not paired with prefill worker {handle.worker_id!r}")
        if peer.info.epoch != handle.epoch:
            raise TandemError(
                "handle_stale_epoch",
                f"handle: from epoch {handle.epoch:x} of worker {handle.worker_id!r}, which is in {peer.info.epoch:x}",
            )
        return peer

    def get(self, worker_id: str) -> Peer | None:
        """The peer of this id."""
        return self._peers.get(worker_id)

    def find_leader(self, agent_name: str) -> Peer | None:
        """The peer whose leader has this name."""
        return next((peer for peer in self if peer.leader_name == agent_name), None)

    def connect(self, peer: Peer, rank: int) -> Remote:
        """The connection to a rank of ``peer``, made anew where it was lost.

        Raises:
            TandemError: ``transfer_failed``: it is lost.
            ReadStuck: for good, though the peer is there.
        """
        remote = peer.remotes.get(rank)
        if remote is not None and remote.lost and not self._reads_from(remote):
            self._agent.disconnect(peer.remotes.pop(rank))
            remote = None
        if remote is None:
            remote = self._agent.connect(peer.info.transfers[rank], peer.runs.get(rank, ()))
            peer.remotes[rank] = remote
        if remote.lost:
            self._check_stuck(remote)
            raise TandemError("transfer_failed", f"the connection to KV worker {remote.name} is lost")
        return remote

    def clean_up(self) -> None:
        """Drop connections to workers that were replaced and that nothing reads from."""
        for remote in list(self._leaving):
            if not self._reads_from(remote):
                self._leaving.remove(remote)
                self._agent.disconnect(remote)
