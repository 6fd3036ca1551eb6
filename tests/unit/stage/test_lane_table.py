"""The stage's end of the lanes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.messages import EngineEvent, Finished, Load, Poll, PollReply, Tokens
from tandem.stage.kv_log import KvLog
from tandem.stage.lane_table import LaneTable

LOAD = Load()


def tokens(request_id: str, index: int) -> Tokens:
    return Tokens(request_id=request_id, index=index, token_ids=[index])


def test_a_poll_waits_for_events_and_gets_them_all_at_once() -> None:
    table, replies = LaneTable(10.0, lambda: 1, KvLog()), list[PollReply]()
    table.claim("a", ["r1", "r2"], now=0.0)
    table.poll(Poll(lane="a", wait_s=1.0), replies.append, LOAD, now=0.0)
    assert replies == []
    events: list[EngineEvent] = [tokens("r1", 0), tokens("r2", 0)]
    table.deliver(events, LOAD, now=0.1)
    assert [reply.events for reply in replies] == [events]


def test_events_before_the_poll_are_kept_for_it() -> None:
    table, replies = LaneTable(10.0, lambda: 1, KvLog()), list[PollReply]()
    table.claim("a", ["r1"], now=0.0)
    table.deliver([tokens("r1", 0)], LOAD, now=0.1)
    table.deliver([tokens("r1", 1)], LOAD, now=0.2)
    table.poll(Poll(lane="a", wait_s=1.0), replies.append, LOAD, now=0.3)
    assert [event.index for event in replies[0].events if isinstance(event, Tokens)] == [0, 1]


def test_a_poll_whose_time_is_over_is_answered_with_nothing() -> None:
    table, replies = LaneTable(10.0, lambda: 1, KvLog()), list[PollReply]()
    table.poll(Poll(lane="a", wait_s=1.0), replies.append, LOAD, now=0.0)
    table.answer_overdue(LOAD, now=0.9)
    assert replies == []
    table.answer_overdue(LOAD, now=1.0)
    assert [reply.events for reply in replies] == [[]]


def test_a_second_poll_takes_the_place_of_the_first() -> None:
    table = LaneTable(10.0, lambda: 1, KvLog())
    first, second = list[PollReply](), list[PollReply]()
    table.claim("a", ["r1"], now=0.0)
    table.poll(Poll(lane="a", wait_s=1.0), first.append, LOAD, now=0.0)
    table.poll(Poll(lane="a", wait_s=1.0), second.append, LOAD, now=0.1)
    table.deliver([tokens("r1", 0)], LOAD, now=0.2)
    assert [len(reply.events) for reply in first] == [0]
    assert [len(reply.events) for reply in second] == [1]


def test_lanes_do_not_see_each_others_events() -> None:
    table, replies = LaneTable(10.0, lambda: 1, KvLog()), list[PollReply]()
    table.claim("a", ["r1"], now=0.0)
    table.claim("b", ["r2"], now=0.0)
    table.poll(Poll(lane="a", wait_s=1.0), replies.append, LOAD, now=0.0)
    table.deliver([tokens("r2", 0)], LOAD, now=0.1)
    assert replies == []


def test_a_silent_lane_gives_up_its_requests() -> None:
    table = LaneTable(10.0, lambda: 1, KvLog())
    table.claim("a", ["r1", "r2"], now=0.0)
    table.claim("b", ["r3"], now=5.0)
    table.deliver([Finished(request_id="r2", reason="stop")], LOAD, now=1.0)
    assert [table.drop(lane, LOAD) for lane in table.silent(now=10.5)] == [["r1"]]
    assert table.request_ids() == ["r3"]
    table.deliver([tokens("r1", 0)], LOAD, now=11.0)  # late events of a dropped request are nobody's


def test_a_lane_with_a_poll_outstanding_is_not_silent() -> None:
    table = LaneTable(10.0, lambda: 1, KvLog())
    table.claim("a", ["r1"], now=0.0)
    table.poll(Poll(lane="a", wait_s=60.0), lambda _: None, LOAD, now=0.0)
    assert table.silent(now=30.0) == []


STEPS = st.lists(st.one_of(st.just("poll"), st.just("overdue"), st.integers(0, 3)), max_size=60)


@given(STEPS)
def test_every_event_arrives_once_and_in_order(steps: list[str | int]) -> None:
    """Whatever the order of polls and engine steps: nothing lost, nothing doubled, nothing out of turn."""
    table, got = LaneTable(1e9, lambda: 1, KvLog()), list[tuple[str, int]]()
    names = [f"r{n}" for n in range(4)]
    table.claim("a", names, now=0.0)
    sent, made = list[tuple[str, int]](), [0] * 4

    def reply(message: PollReply) -> None:
        got.extend((event.request_id, event.index) for event in message.events if isinstance(event, Tokens))

    for now, step in enumerate(steps):
        if step == "poll":
            table.poll(Poll(lane="a", wait_s=3.0), reply, LOAD, now=float(now))
        elif step == "overdue":
            table.answer_overdue(LOAD, now=float(now))
        else:
            assert isinstance(step, int)
            table.deliver([tokens(names[step], made[step])], LOAD, now=float(now))
            sent.append((names[step], made[step]))
            made[step] += 1
    table.poll(Poll(lane="a", wait_s=0.0), reply, LOAD, now=1e6)
    assert got == sent
