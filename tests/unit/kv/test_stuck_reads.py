"""A peer that says nothing in the midst of a read: nobody else waits for it, and its blocks come back all the same."""

from __future__ import annotations

import pytest

from tandem.errors import TandemError
from tandem.kv.part import STUCK_TIMEOUTS, ReadStuck
from tandem.kv.pull import PullResult
from tests.unit.kv.network import TIMEOUT_S, Network, Process


class Pair:
    """Prefill, whose reads move only when the test moves them, and decode, which has waited in vain for the first."""

    def __init__(self) -> None:
        self.network = Network()
        self.prefill = Process(self.network, "prefill", 8)
        self.decode = Process(self.network, "decode", 8)
        for one, other in ((self.prefill, self.decode), (self.decode, self.prefill)):
            one.transfer.pair(other.info)
            one.transfer.turn()
        self.results: list[PullResult] = []
        self.blocks = self.pull("first")
        self.decode.now += TIMEOUT_S + 0.1
        self.decode.transfer.turn()
        assert "no answer within" in self.error("first")

    def pull(self, name: str) -> list[int]:
        handle = self.prefill.grant(name, self.prefill.write(2, name))
        blocks = self.decode.pull(name, handle, self.results.append)
        self.decode.transfer.turn()
        return blocks

    def error(self, name: str) -> str:
        """How a pull has ended; empty if well."""
        (error,) = [result.error for result in self.results if result.request_id == name]
        assert error is None or isinstance(error, TandemError)
        return str(error or "")

    def arrive(self) -> None:
        """All that is on its way."""
        for read in self.network.moving():
            while read.left:
                self.network.move(read, 0)
        for _ in range(3):
            for envelope in self.network.mail:
                self.network.deliver(envelope)
            self.network.mail.clear()
            self.prefill.transfer.turn()
            self.decode.transfer.turn()


def test_pulls_are_refused_at_once_until_the_read_has_ended() -> None:
    pair = Pair()
    pair.pull("second")
    assert "is lost" in pair.error("second")
    pair.decode.pool.free(pair.blocks)
    pair.arrive()
    assert pair.decode.pool.used == 2  # those of the second
    third = pair.pull("third")
    pair.arrive()
    assert pair.error("third") == ""
    assert [pair.decode.memory[block] for block in third] == ["third", "third"]


def test_a_peer_that_is_there_but_cannot_be_read_from_ends_the_transfer() -> None:
    """And with its thread the process, which is started again. As long as that peer grants nothing, nothing happens."""
    pair = Pair()
    pair.decode.now += (STUCK_TIMEOUTS - 1) * TIMEOUT_S - 0.2
    pair.pull("second")
    assert "is lost" in pair.error("second")
    pair.decode.now += 0.2
    pair.decode.transfer.turn()
    with pytest.raises(ReadStuck, match="has not ended after 10 s"):
        pair.pull("third")
