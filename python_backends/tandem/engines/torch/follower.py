"""What every rank of an engine group does but the leader: it carries out orders, one after another."""

from __future__ import annotations

import logging

from tandem.deployment import Deployment, Worker
from tandem.engines.torch.rank import load_follower
from tandem.engines.torch.runner import ModelRunner
from tandem.errors import TandemError
from tandem.kv.reader import KvReader
from tandem.messages import Orders
from tandem.parallel import heartbeat
from tandem.parallel.group import RankGroup

log = logging.getLogger(__name__)

PATIENCE = 2
"""A leader that says nothing for this many times ``parallel.hang_timeout_s`` is lost."""


def serve(deployment: Deployment, worker: Worker, group: RankGroup) -> None:
    """Do one rank's part (an ``EngineFollower``) until the leader says stop.

    Raises:
        TandemError: what in deployment, environment or checkpoint is wrong.
        LeaderLost: no orders came for too long.
    """
    runner, reader = load_follower(deployment, worker, group)
    runner.use_in_this_thread()
    heartbeat.loaded()
    try:
        _Follower(runner, reader, group).run(PATIENCE * deployment.parallel.hang_timeout_s)
    finally:
        reader.stop()


class _Follower:
    def __init__(self, runner: ModelRunner, reader: KvReader, group: RankGroup) -> None:
        self._runner, self._reader, self._group = runner, reader, group

    def run(self, timeout_s: float) -> None:
        """Carry out orders until told to stop."""
        while True:
            orders = self._group.wait_for_orders(timeout_s, meanwhile=self._report)
            if orders.stop:
                break
            self._obey(orders)
        self._group.part()

    def _obey(self, orders: Orders) -> None:
        for worker_id in orders.unpair:
            self._reader.unpair(worker_id)
        for peer in orders.pair:
            try:
                self._reader.pair(peer)
            except TandemError as error:  # the peer is of no use to us, but all others are
                log.error("not paired with %s: %s", peer.worker_id, error)
        self._reader.serve(orders.leases_held)
        for pull in orders.pull:
            self._reader.read(pull)
        for request_id in orders.abort:
            self._reader.abort(request_id)
        if orders.step is not None:
            self._runner.run(orders.step)
            self._report()

    def _report(self) -> None:
        for ended in self._reader.ended():
            self._group.report(ended)
