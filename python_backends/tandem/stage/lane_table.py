"""The stage's end of the lanes: who gets which event, and which polls wait for some."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem.messages import EngineEvent, Failed, Finished, KvReport, Load, Poll, PollReply, Prefilled
from tandem.stage.kv_log import KvLog

Reply = Callable[[PollReply], None]


@dataclass
class _WaitingPoll:
    reply: Reply
    due: float
    kv_from: int | None


@dataclass
class _Lane:
    last_seen: float
    events: list[EngineEvent] = field(default_factory=list)
    waiting: _WaitingPoll | None = None


class LaneTable:
    """Sorts events into lanes and answers polls. Replies are sent outside the lock, in the order of their events.

    A request belongs to a lane from ``claim`` until its last event. Times are those of one monotonic clock, in seconds.
    """

    def __init__(self, silence_s: float, epoch: Callable[[], int], kv: KvLog) -> None:
        """``epoch`` tells the running engine's, 0 while there is none: lanes learn of a loss by it. ``kv`` is the log
        of the same engine's prefix cache."""
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._lane_of: dict[str, str] = {}
        self._silence_s = silence_s
        self._epoch = epoch
        self._kv = kv
        self.draining = False
        """Whether lanes are told that the worker is about to end."""

    def claim(self, lane: str, request_ids: list[str], now: float) -> None:
        """From now on events of these requests go to ``lane``."""
        with self._lock:
            self._lane(lane, now).last_seen = now
            for request_id in request_ids:
                self._lane_of[request_id] = lane

    def poll(self, poll: Poll, reply: Reply, load: Load, now: float) -> None:
        """Answer at once where the lane has events; else keep ``reply`` until it has some or ``wait_s`` is over."""
        with self._lock:
            lane = self._lane(poll.lane, now)
            lane.last_seen = now
            replaced, lane.waiting = lane.waiting, _WaitingPoll(reply, now + poll.wait_s, poll.kv_from)
            answers = self._take_due(lane, load, now)
        if replaced is not None:
            replaced.reply(self._answer([], load))
        _send(answers)

    def deliver(self, events: list[EngineEvent], load: Load, now: float) -> None:
        """Sort an engine step's events into their lanes and answer the polls that wait for them."""
        with self._lock:
            touched: dict[str, _Lane] = {}
            for event in events:
                name = self._lane_of.get(event.request_id)
                if name is None:
                    continue  # cancelled by a lane that is gone
                lane = touched[name] = self._lanes[name]
                lane.events.append(event)
                if is_last(event):
                    del self._lane_of[event.request_id]
            answers = [answer for lane in touched.values() for answer in self._take_due(lane, load, now)]
        _send(answers)

    def answer_overdue(self, load: Load, now: float) -> None:
        """Answer the polls whose time is over, with no events."""
        with self._lock:
            answers = [answer for lane in self._lanes.values() for answer in self._take_due(lane, load, now)]
        _send(answers)

    def silent(self, now: float) -> list[str]:
        """Lanes that nobody polls any more."""
        with self._lock:
            lanes = self._lanes.items()
            return [n for n, lane in lanes if not lane.waiting and now - lane.last_seen > self._silence_s]

    def drop(self, name: str, load: Load) -> list[str]:
        """Forget a lane; returns its requests, which must be cancelled. A poll that waits is answered."""
        with self._lock:
            lane = self._lanes.pop(name, None)
            orphans = [r for r, owner in self._lane_of.items() if owner == name]
            for request_id in orphans:
                del self._lane_of[request_id]
        if lane is not None and lane.waiting is not None:
            lane.waiting.reply(self._answer([], load))
        return orphans

    @property
    def is_empty(self) -> bool:
        """Whether no orchestrator has a lane here."""
        return not self._lanes

    def request_ids(self) -> list[str]:
        """All requests that have not had their last event."""
        with self._lock:
            return list(self._lane_of)

    def __contains__(self, request_id: str) -> bool:
        """Whether a request has not had its last event."""
        return request_id in self._lane_of

    def __len__(self) -> int:
        return len(self._lane_of)

    def _lane(self, name: str, now: float) -> _Lane:
        return self._lanes.setdefault(name, _Lane(last_seen=now))

    def _take_due(self, lane: _Lane, load: Load, now: float) -> list[tuple[Reply, PollReply]]:
        waiting = lane.waiting
        if waiting is None or not (lane.events or now >= waiting.due):
            return []
        events, lane.events, lane.waiting, lane.last_seen = lane.events, [], None, now
        kv = self._kv.report(waiting.kv_from)  # before the epoch: a report of an older one is not taken for this one's
        return [(waiting.reply, self._answer(events, load, kv))]

    def _answer(self, events: list[EngineEvent], load: Load, kv: KvReport | None = None) -> PollReply:
        return PollReply(epoch=self._epoch(), events=events, load=load, kv=kv, draining=self.draining)


def is_last(event: EngineEvent) -> bool:
    """Whether a request of this worker has no event after this one."""
    return isinstance(event, Finished | Failed | Prefilled)


def _send(answers: list[tuple[Reply, PollReply]]) -> None:
    for reply, message in answers:
        reply(message)
