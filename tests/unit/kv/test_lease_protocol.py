"""The lease protocol as a whole: the real leases, confirmations, pulls and transfers of two workers, on a transport and
on clocks that do whatever hypothesis thinks of. And the same without a step of it, which has to be found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tandem.kv.agent import Remote
from tandem.kv.blocks import OutOfBlocks
from tandem.kv.leases import LeaseTable
from tandem.kv.lending import Loan, as_handle
from tandem.kv.part import ReadStuck
from tandem.kv.prefix_cache import Chain
from tandem.kv.pull import Pull, PullResult
from tandem.messages import KvHandle, Lent
from tests.unit.kv.network import LEASE_S, TIMEOUT_S, Network, Process

PREFILL_BLOCKS, DECODE_BLOCKS = 5, 4
SIDES = st.sampled_from(["prefill", "decode"])
RARELY = st.sampled_from([True, False, False, False])
SECONDS = st.sampled_from([0.05, 0.2, 1.0, LEASE_S + 0.1])


@dataclass(eq=False)
class Held:
    """Blocks that somebody uses, and what they hold."""

    process: Process
    blocks: list[int]
    word: str


@dataclass(eq=False)
class Pulling:
    handle: KvHandle | None
    """None: nothing was lent yet."""
    word: str
    process: Process
    blocks: list[int]
    ended: bool = False


class LeaseProtocol(RuleBasedStateMachine):
    """Requests have words; whoever uses a block must find the word of its request there."""

    once = True
    """Whether it is checked that a handle is redeemed once."""

    @initialize(on_one_host=st.booleans())
    def start(self, on_one_host: bool) -> None:
        self.network = Network(words={} if on_one_host else None)
        self.prefill = Process(self.network, "prefill", PREFILL_BLOCKS)
        self.decode = Process(self.network, "decode", DECODE_BLOCKS)
        self.count = 0
        self.handles: list[tuple[KvHandle, str]] = []
        self.texts: list[Chain] = []
        """Prompts that prefill has read, of which it may still hold something."""
        self.pulls: dict[str, Pulling] = {}
        self.held: list[Held] = []
        self.redeemed: set[tuple[int, int]] = set()
        self.ended_twice = self.redeemed_twice = False
        self.refused: list[str] = []
        self.introduce()

    def new_name(self) -> str:
        self.count += 1
        return f"request {self.count}"

    def side(self, name: str) -> Process:
        return self.prefill if name == "prefill" else self.decode

    def introduce(self) -> None:
        self.prefill.transfer.pair(self.decode.info)
        self.decode.transfer.pair(self.prefill.info)

    # ------------------------------------------------------------ what engines do

    @rule(count=st.integers(1, 3))
    def grant(self, count: int) -> None:
        """A prompt is read; its handle may be pulled now, late, several times or never."""
        word = self.new_name()
        if self.prefill.stopped or not self.prefill.pool.can_allocate(count):
            return
        self.handles.append((self.prefill.grant(word, self.prefill.write(count, word)), word))

    @rule(side=SIDES, count=st.integers(1, 4))
    def use(self, side: str, count: int) -> None:
        """Another request takes blocks, and writes to them."""
        process, word = self.side(side), self.new_name()
        if not process.stopped and process.pool.can_allocate(count):
            self.held.append(Held(process, process.write(count, word), word))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        if not held.process.stopped:
            self.held.remove(held)
            held.process.pool.free(held.blocks)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        handle, word = data.draw(st.sampled_from(self.handles[-3:]))
        name = self.new_name()
        if self.decode.stopped:
            return
        try:
            blocks = self.decode.pull(name, handle, self.pulled)
        except OutOfBlocks:
            return
        self.pulls[name] = Pulling(handle, word, self.decode, blocks)

    @rule(count=st.integers(1, 3))
    def cache(self, count: int) -> None:
        """A prompt is read, and its blocks are kept for as long as nobody else needs them."""
        if self.prefill.stopped or not self.prefill.pool.can_allocate(count):
            return
        number = len(self.texts)
        chain = Chain([number] * count, 1, "")
        blocks = self.prefill.write(count, f"text {number}")
        self.prefill.pool.store(chain, blocks, 0, count)
        self.prefill.pool.free(blocks)
        self.texts.append(chain)

    @rule(data=st.data(), count=st.integers(1, 3), fresh=st.booleans())
    def borrow(self, data: st.DataObject, count: int, fresh: bool) -> None:
        """Decode would like to have the beginning of a text that prefill has read, maybe just now."""
        if fresh:
            self.cache(count)
        if not self.texts:
            return
        number = data.draw(st.integers(max(0, len(self.texts) - 3), len(self.texts) - 1))
        name, decode = self.new_name(), self.decode
        if decode.stopped or not decode.pool.can_allocate(count):
            return
        chain, tokens = Chain([number] * count, 1, ""), [number] * count
        blocks = decode.pool.allocate(count)

        def accept(lent: Lent) -> tuple[KvHandle, list[int]]:
            handle = as_handle(lent, decode.info, self.prefill.info, tokens, chain)
            pulling.handle, pulling.blocks = handle, blocks[: len(lent.block_ids)]
            decode.pool.free(blocks[len(lent.block_ids) :])
            return handle, pulling.blocks

        pulling = self.pulls[name] = Pulling(None, f"text {number}", decode, blocks)
        names = [chain[i][0] for i in range(count)]
        decode.transfer.borrow(Loan(name, "prefill_0", "", names, 0, accept, self.pulled))

    def pulled(self, result: PullResult) -> None:
        """A pull has ended: with its blocks the request goes on, or gives them back."""
        pull = self.pulls[result.request_id]
        self.ended_twice |= pull.ended
        pull.ended = True
        if result.error is not None:
            self.refused.append(result.error.code)
            pull.process.pool.free(pull.blocks)
            return
        assert pull.handle is not None
        ticket = (pull.handle.epoch, pull.handle.lease_id)
        self.redeemed_twice |= ticket in self.redeemed
        self.redeemed.add(ticket)
        self.held.append(Held(pull.process, pull.blocks, pull.word))
        self.nobody_finds_what_is_not_its_own()

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pulls)))
        if not self.decode.stopped:
            self.decode.transfer.abort(name)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The orchestrator cancels a request at prefill."""
        if not self.prefill.stopped:
            self.prefill.leases.cancel([data.draw(st.sampled_from(self.handles))[1]])

    # ------------------------------------------------------------ time, and what happens to processes

    @rule(side=SIDES)
    def turn(self, side: str) -> None:
        if self.side(side).stopped:
            return
        try:
            self.side(side).transfer.turn()
        except ReadStuck:
            self.restart(side, chance=True, known=False)  # what its process does then

    @rule(seconds=SECONDS, busy=st.booleans())
    def pass_time(self, seconds: float, busy: bool = False) -> None:
        """Where ``busy``, those who run do so before and after; nothing arrives meanwhile."""
        for side in ("prefill", "decode", "prefill", "decode"):
            if busy:
                self.turn(side)
            self.side(side).now += 0.0 if self.side(side).frozen else seconds / 2

    @rule(side=SIDES, chance=RARELY, clock_too=st.booleans())
    def stop(self, side: str, chance: bool, clock_too: bool) -> None:
        if not chance:
            return
        self.side(side).stopped, self.side(side).frozen = True, clock_too

    @rule(side=SIDES)
    def go_on(self, side: str) -> None:
        self.side(side).stopped = self.side(side).frozen = False

    @rule(side=SIDES, chance=RARELY, known=st.booleans())
    def restart(self, side: str, chance: bool, known: bool) -> None:
        """Memory and leases are gone; where it is not ``known``, the other side learns of it when they meet."""
        if not chance:
            return
        old = self.side(side)
        del self.network.processes[old.name]
        self.held = [held for held in self.held if held.process is not old]
        self.pulls = {name: pull for name, pull in self.pulls.items() if pull.process is not old}
        if side == "prefill":
            self.texts = []
            self.prefill = Process(self.network, "prefill", PREFILL_BLOCKS)
        else:
            self.decode = Process(self.network, "decode", DECODE_BLOCKS)
        if known:
            self.introduce()

    @rule()
    def meet(self) -> None:
        self.introduce()

    # ------------------------------------------------------------ the transport

    @precondition(lambda self: self.network.moving())
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        read = data.draw(st.sampled_from(self.network.moving()))
        self.network.move(read, data.draw(st.integers(0, len(read.left) - 1)))

    @precondition(lambda self: self.network.mail)
    @rule(data=st.data(), fate=st.sampled_from(["arrives", "arrives", "arrives, and will again", "is lost"]))
    def carry(self, data: st.DataObject, fate: str) -> None:
        envelope = data.draw(st.sampled_from(self.network.mail))
        if fate != "arrives, and will again":
            self.network.mail.remove(envelope)
        if fate != "is lost":
            self.network.deliver(envelope)

    @rule(rounds=st.integers(1, 6))
    def flow(self, rounds: int) -> None:
        """For a while all goes as it does on a good day: blocks and messages arrive, whoever runs takes turns."""
        for _ in range(rounds):
            for side in ("decode", "prefill"):
                self.turn(side)
                for read in self.network.moving():
                    self.network.move(read, 0)
                while self.network.mail:
                    self.network.deliver(self.network.mail.pop(0))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def nothing_happens_twice(self) -> None:
        """Said here, since whoever calls ``pulled`` lives through its errors."""
        assert not getattr(self, "ended_twice", False), "a pull ended twice"
        assert not (self.once and getattr(self, "redeemed_twice", False)), "a handle was redeemed twice"

    @invariant()
    def nobody_finds_what_is_not_its_own(self) -> None:
        for held in getattr(self, "held", ()):
            found = [held.process.memory[block] for block in held.blocks]
            assert set(found) == {held.word}, f"{held.word} uses blocks with {found}"

    def teardown(self) -> None:
        """Everybody runs, all arrives, time passes: nothing is left."""
        if not hasattr(self, "network"):
            return
        for side in ("prefill", "decode"):
            self.go_on(side)
        self.introduce()
        for _ in range(8):
            for read in self.network.moving():
                while read.left:
                    self.network.move(read, 0)
            while self.network.mail:
                self.network.deliver(self.network.mail.pop(0))
            self.turn("prefill")
            self.turn("decode")
            self.pass_time(TIMEOUT_S)
        self.nobody_finds_what_is_not_its_own()
        assert all(pull.ended for pull in self.pulls.values()), "a pull has no end"
        for held in self.held:
            held.process.pool.free(held.blocks)
        assert (self.prefill.leases.held, self.prefill.pool.used, self.decode.pool.used) == (0, 0, 0)
        for process in (self.prefill, self.decode):
            assert len(process.write(process.pool.num_blocks, "all")) == process.pool.num_blocks


LeaseProtocol.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestLeaseProtocol = LeaseProtocol.TestCase


def search() -> None:
    """The same machine, for as long as it takes to find something."""
    thorough = settings(
        max_examples=3000,
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(LeaseProtocol, settings=thorough)


def test_without_the_confirmation_the_use_of_a_freed_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode uses what it has read without asking: what is read may be another request's by then."""
    monkeypatch.setattr(LeaseProtocol, "once", False)
    monkeypatch.setattr(Pull, "done", property(lambda pull: pull.part.done))
    with pytest.raises(AssertionError, match=r"request \d+ uses blocks with"):
        search()


@pytest.mark.parametrize("looks", [True, False])
def test_a_look_at_the_lease_keeps_what_came_after_it_from_being_used(
    monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """On one host: decode has claimed the lease; it ends, and its blocks are another's, before the read does."""
    if not looks:
        monkeypatch.setattr(Remote, "holds", lambda _remote, _lease: True)
    machine = LeaseProtocol()
    machine.start(on_one_host=True)
    begin_pulls(machine, count=1)
    machine.prefill.leases.cancel(["shared"])
    machine.use("prefill", PREFILL_BLOCKS)
    machine.flow(3)
    if looks:
        assert machine.refused == ["lease_cancelled"]
        machine.teardown()
    else:
        with pytest.raises(AssertionError, match=r"shared uses blocks with"):
            machine.nobody_finds_what_is_not_its_own()


@pytest.mark.parametrize("claims", [True, False])
def test_of_two_who_see_that_a_lease_holds_one_has_claimed_it(monkeypatch: pytest.MonkeyPatch, claims: bool) -> None:
    if not claims:
        monkeypatch.setattr(LeaseTable, "claim", lambda *_: None)
    machine = LeaseProtocol()
    machine.start(on_one_host=True)
    begin_pulls(machine, count=2)
    for read in machine.network.moving():
        while read.left:
            machine.network.move(read, 0)
    machine.turn("decode")
    if claims:
        assert machine.refused == ["handle_used"]
        machine.teardown()
    else:
        with pytest.raises(AssertionError, match="redeemed twice"):
            machine.nothing_happens_twice()


def begin_pulls(machine: LeaseProtocol, count: int) -> None:
    """Of one handle, up to where their claims are answered; no block is moved."""
    handle = machine.prefill.grant("shared", machine.prefill.write(2, "shared"))
    for number in range(count):
        blocks = machine.decode.pull(f"p{number}", handle, machine.pulled)
        machine.pulls[f"p{number}"] = Pulling(handle, "shared", machine.decode, blocks)
    for side in ("decode", "prefill", "decode"):
        machine.turn(side)
        while machine.network.mail:
            machine.network.deliver(machine.network.mail.pop(0))


@pytest.mark.parametrize("pins", [True, False])
def test_pins_keep_a_late_write_from_the_next_request(monkeypatch: pytest.MonkeyPatch, pins: bool) -> None:
    """A pull is given up at its deadline, and its blocks are wanted at once, though its read goes on."""
    if not pins:
        monkeypatch.setattr(Pull, "may_write", lambda _pull: False)
    machine = LeaseProtocol()
    machine.start(on_one_host=False)
    handle = machine.prefill.grant("late", machine.prefill.write(3, "late"))
    machine.pulls["p"] = Pulling(handle, "late", machine.decode, machine.decode.pull("p", handle, machine.pulled))
    machine.turn("decode")
    machine.pass_time(TIMEOUT_S + 0.1)
    machine.turn("decode")
    assert machine.pulls["p"].ended
    machine.use("decode", 3)
    assert len(machine.held) == (0 if pins else 1)
    for read in machine.network.moving():
        machine.network.move(read, 0)
    if pins:
        machine.teardown()
    else:
        with pytest.raises(AssertionError, match=r"request \d+ uses blocks with"):
            machine.nobody_finds_what_is_not_its_own()
