"""What workers lend each other from their prefix caches, on simulated memory, transport and clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import TandemError
from tandem.kv.lending import PATIENCE_S, Loan, as_handle, lend
from tandem.kv.prefix_cache import Chain, PrefixCache
from tandem.kv.pull import PullResult
from tandem.messages import Borrow, KvHandle, Lent
from tests.unit.kv.network import LEASE_S, Network, Process

TEXT = [7, 8, 9, 10]


def chain_of(token_ids: list[int], salt: str = "") -> Chain:
    return Chain(token_ids, 1, salt)


def names_of(token_ids: list[int], salt: str = "") -> list[int]:
    chain = chain_of(token_ids, salt)
    return [chain[i][0] for i in range(len(token_ids))]


class Site:
    """A lender that has read a text, and somebody who wants to have what it knows of it."""

    def __init__(self, text: list[int] = TEXT) -> None:
        self.network = Network()
        self.lender = Process(self.network, "decode", 8)
        self.borrower = Process(self.network, "prefill", 8)
        self.lender.transfer.pair(self.borrower.info)
        self.borrower.transfer.pair(self.lender.info)
        self.results: list[PullResult] = []
        self.blocks: list[int] = []
        self.keep(text)

    def keep(self, text: list[int], salt: str = "") -> None:
        """The lender reads a text, and holds it for reuse."""
        blocks = self.lender.write(len(text), "kv of the text")
        self.lender.pool.store(chain_of(text, salt), blocks, 0, len(text))
        self.lender.pool.free(blocks)

    def borrow(self, text: list[int], salt: str = "", beyond: int = 0) -> None:
        """Ask for the text's KV."""
        self.blocks = self.borrower.pool.allocate(len(text))

        def accept(lent: Lent) -> tuple[KvHandle, list[int]]:
            handle = as_handle(lent, self.borrower.info, self.lender.info, text, chain_of(text, salt))
            return handle, self.blocks[: len(lent.block_ids)]

        loan = Loan("r", self.lender.info.worker_id, salt, names_of(text, salt), beyond, accept, self.results.append)
        self.borrower.transfer.borrow(loan)

    def run(self, rounds: int = 8) -> None:
        """All that was sent arrives, and everybody takes turns."""
        for _ in range(rounds):
            for process in (self.borrower, self.lender):
                if not process.stopped:
                    process.transfer.turn()
                for read in self.network.moving():
                    self.network.move(read, 0)
                while self.network.mail:
                    self.network.deliver(self.network.mail.pop(0))

    def pass_time(self, seconds: float) -> None:
        for process in (self.borrower, self.lender):
            process.now += seconds

    @property
    def error(self) -> str:
        """How the one loan has failed."""
        (result,) = self.results
        assert result.error is not None
        return result.error.code

    def has_nothing_left(self) -> bool:
        """Whether the lender is as it was before."""
        return (self.lender.leases.held, self.lender.pool.used) == (0, 0)


def test_what_is_lent_is_read_and_let_go_of() -> None:
    site = Site()
    site.borrow([*TEXT, 11])
    site.run()
    (result,) = site.results
    assert (result.error, result.bytes_moved) == (None, 4 * 64)
    assert [site.borrower.memory[b] for b in site.blocks] == ["kv of the text"] * 4 + ["nothing"]
    assert site.has_nothing_left()
    assert site.lender.leases.granted == 1


@pytest.mark.parametrize(
    ("wanted", "salt", "beyond"), [([1, 2, 3], "", 0), (TEXT, "another tenant", 0), (TEXT, "", 4), ([7, 8], "", 2)]
)
def test_nothing_is_lent_that_is_not_there_or_of_no_use(wanted: list[int], salt: str, beyond: int) -> None:
    site = Site()
    site.borrow(wanted, salt, beyond)
    site.run()
    assert site.error == "handle_tokens"
    assert site.has_nothing_left()
    assert site.lender.leases.granted == 0


def test_a_lender_that_says_nothing_is_not_waited_for_long() -> None:
    site = Site()
    site.lender.stopped = True
    site.borrow(TEXT)
    site.run()
    assert not site.results
    site.pass_time(PATIENCE_S + 0.1)
    site.run()
    assert site.error == "transfer_failed"


def test_an_answer_that_comes_too_late_is_given_back_at_once() -> None:
    site = Site()
    site.lender.stopped = True
    site.borrow(TEXT)
    site.run()
    site.pass_time(PATIENCE_S + 0.1)
    site.run()
    site.lender.stopped = False
    site.run()
    assert len(site.results) == 1
    assert site.has_nothing_left()
    assert site.lender.leases.expired == 0


def test_what_is_asked_of_a_stranger_ends_at_once() -> None:
    site = Site()
    site.borrower.transfer.unpair(site.lender.info.worker_id)
    site.borrow(TEXT)
    site.run(1)
    assert site.error == "handle_unknown_worker"


def test_a_stranger_is_not_answered() -> None:
    site = Site()
    site.lender.transfer.unpair(site.borrower.info.worker_id)
    site.borrow(TEXT)
    site.run()
    assert site.lender.leases.granted == 0


def test_a_loan_can_be_aborted_before_the_answer_and_during_the_read() -> None:
    for rounds in (0, 1, 2):
        site = Site()
        site.borrow(TEXT)
        for _ in range(rounds):
            site.borrower.transfer.turn()
            while site.network.mail:
                site.network.deliver(site.network.mail.pop(0))
            site.lender.transfer.turn()
        site.borrower.transfer.abort("r")
        site.run(8)
        assert site.error == "cancelled"
        assert site.has_nothing_left()


def test_a_lease_that_ends_before_the_read_does_fails_the_loan() -> None:
    """What was evicted meanwhile is not used, though all of it was read."""
    site = Site()
    site.borrow(TEXT)
    site.borrower.transfer.turn()
    site.network.deliver(site.network.mail.pop())
    site.lender.transfer.turn()
    site.lender.now += LEASE_S + 0.1
    site.lender.leases.expire()
    site.lender.write(8, "another's")
    site.run()
    assert site.error == "lease_expired"


def test_names_alone_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts whose blocks have the same names: the lender has the other one."""
    site = Site(text=[1, 2, 3, 4])
    same = names_of([1, 2, 3, 4])
    monkeypatch.setattr(Chain, "__getitem__", lambda chain, i: (same[i], chain._token_ids[i].to_bytes(4, "little")))
    site.borrow(TEXT)
    site.run()
    assert site.error == "handle_tokens"
    assert site.has_nothing_left()


@pytest.mark.parametrize("blocks", [[0, 0], [0, 99], [], [0, 1, 2, 3, 4]])
def test_blocks_that_make_no_sense_are_refused(blocks: list[int]) -> None:
    site, chain = Site(), chain_of(TEXT)
    lent = Lent(correlation=1, lease_id=1, block_ids=blocks, digest=chain.digest(max(0, min(3, len(blocks) - 1))))
    with pytest.raises(TandemError):
        as_handle(lent, site.borrower.info, site.lender.info, TEXT, chain)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
def test_lent_is_the_longest_beginning_that_is_there(wanted: list[int], known: list[list[int]]) -> None:
    site = Site(text=[5])
    site.lender.pool = pool = PrefixCache(60)
    site.lender.leases.pool = pool
    for text in known:
        blocks = pool.allocate(len(text))
        pool.store(chain_of(text), blocks, 0, len(text))
        pool.free(blocks)
    note = Borrow(correlation=1, salt="", names=names_of(wanted), beyond=0)
    lent = lend(site.lender.leases, "somebody", note)
    prefixes = {tuple(text[:n]) for text in known for n in range(1, len(text) + 1)}
    longest = max((n for n in range(len(wanted) + 1) if tuple(wanted[:n]) in prefixes), default=0)
    assert len(lent.block_ids) == longest
    assert pool.used == longest
    if longest:
        assert lent.digest == chain_of(wanted).digest(longest - 1)
        site.lender.leases.confirm(lent.lease_id)
    assert pool.used == 0
