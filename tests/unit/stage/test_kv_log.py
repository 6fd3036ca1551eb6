"""The log of a prefix cache, and readers that lose, repeat and delay what it says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tandem.messages import BlocksRemoved, BlocksStored, KvEvent, KvReport, Load, Poll, PollReply
from tandem.stage.kv_log import KvLog
from tandem.stage.lane_table import LaneTable


def apply(there: set[int], events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, BlocksStored):
            there |= set(event.hashes)
        else:
            there -= set(event.hashes)


class Reader:
    """The other end of the log, by its rules."""

    def __init__(self) -> None:
        self.epoch, self.next, self.there = 0, 1, set[int]()

    def take(self, epoch: int, report: KvReport | None) -> None:
        if epoch != self.epoch:
            if epoch > self.epoch:  # a reply of an older epoch came late
                self.epoch, self.next, self.there = epoch, 1, set()
            return
        if report is None:
            return
        if report.is_snapshot:
            if report.first >= self.next - 1:
                self.there = set()
                apply(self.there, report.events)
                self.next = report.first + 1
        elif report.first <= self.next:
            apply(self.there, report.events[self.next - report.first :])
            self.next = max(self.next, report.first + len(report.events))


class LossyReaders(RuleBasedStateMachine):
    """An engine whose cache changes and which restarts, and two readers, each reply to whom may be lost, come twice or
    late."""

    @initialize(kept=st.integers(0, 12))
    def start(self, kept: int) -> None:
        self.log, self.epoch, self.there = KvLog(kept), 1, set[int]()
        self.readers = [Reader(), Reader()]
        self.on_the_way: list[tuple[Reader, int, KvReport | None]] = []

    @rule(data=st.data(), store=st.sets(st.integers(0, 30), min_size=1, max_size=5))
    def change(self, data: st.DataObject, store: set[int]) -> None:
        events: list[KvEvent] = []
        if gone := data.draw(st.sets(st.sampled_from(sorted(self.there)), max_size=4)) if self.there else None:
            events.append(BlocksRemoved(hashes=sorted(gone)))
        events.append(BlocksStored(hashes=sorted(store - (self.there - (gone or set())))))
        apply(self.there, events)
        self.log.add(events)

    @rule()
    def restart(self) -> None:
        self.log.clear()
        self.epoch, self.there = self.epoch + 1, set()

    @rule(n=st.integers(0, 1))
    def ask(self, n: int) -> None:
        reader = self.readers[n]
        self.on_the_way.append((reader, self.epoch, self.log.report(reader.next)))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        i = data.draw(st.integers(0, len(self.on_the_way) - 1))
        reader, epoch, report = self.on_the_way[i]
        reader.take(epoch, report)
        if not again:
            del self.on_the_way[i]

    @precondition(lambda self: self.on_the_way)
    @rule()
    def lose(self) -> None:
        self.on_the_way.pop()

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        for reader, epoch, report in self.on_the_way:
            reader.take(epoch, report)
        for reader in self.readers:
            for _ in range(2):  # the first one may tell of a new epoch
                reader.take(self.epoch, self.log.report(reader.next))
            assert reader.there == self.there
            assert self.log.report(reader.next) is None


LossyReaders.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLossyReaders = LossyReaders.TestCase


@given(sizes=st.lists(st.integers(1, 5), max_size=30), kept=st.integers(0, 40))
def test_a_reader_gets_just_what_is_new_to_it_as_far_as_the_log_reaches(sizes: list[int], kept: int) -> None:
    log, name, events = KvLog(kept), 0, list[KvEvent]()
    for size in sizes:
        events.append(BlocksStored(hashes=list(range(name, name + size))))
        name += size
    log.add(events)
    for first in range(1, len(sizes) + 1):
        report = log.report(first)
        assert report is not None
        if sum(sizes[first - 1 :]) <= kept:
            assert report == KvReport(first=first, events=events[first - 1 :])
        else:
            everything = [BlocksStored(hashes=list(range(name)))]
            assert report == KvReport(first=len(sizes), events=everything, is_snapshot=True)
    assert log.report(len(sizes) + 1) is None
    assert log.report(None) is None


def test_a_reader_that_is_ahead_has_missed_a_restart() -> None:
    log = KvLog()
    assert log.report(1) is None
    assert log.report(7) == KvReport(first=0, events=[], is_snapshot=True)


def test_every_lane_has_its_own_place_in_the_log() -> None:
    log, replies = KvLog(), list[PollReply]()
    table = LaneTable(10.0, lambda: 1, log)
    log.add([BlocksStored(hashes=[1, 2]), BlocksRemoved(hashes=[1])])
    for lane, kv_from in (("a", 1), ("b", 2), ("c", 3), ("d", None)):
        table.poll(Poll(lane=lane, wait_s=0.0, kv_from=kv_from), replies.append, Load(), now=0.0)
    assert [reply.kv and len(reply.kv.events) for reply in replies] == [2, 1, None, None]


def test_changes_alone_do_not_answer_a_poll() -> None:
    """They come with the next reply there is a reason for."""
    log, replies = KvLog(), list[PollReply]()
    table = LaneTable(10.0, lambda: 1, log)
    table.poll(Poll(lane="a", wait_s=1.0, kv_from=1), replies.append, Load(), now=0.0)
    log.add([BlocksStored(hashes=[5])])
    table.deliver([], Load(), now=0.5)
    assert replies == []
    table.answer_overdue(Load(), now=1.0)
    assert replies[0].kv == KvReport(first=1, events=[BlocksStored(hashes=[5])])
