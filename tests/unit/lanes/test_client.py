"""The orchestrator's end of a lane, over a worker that is only a script of replies."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

import pytest

from tandem.deployment import Worker
from tandem.errors import TandemError
from tandem.lanes.client import LaneClient
from tandem.lanes.replica import Replica
from tandem.messages import (
    BlocksStored,
    Cancel,
    Done,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Hello,
    HelloReply,
    KvFormat,
    KvReport,
    LaneReply,
    LaneRequest,
    Leave,
    Load,
    Poll,
    PollReply,
    Refused,
    Sampling,
    Stopping,
    Submit,
    SubmitReply,
    Tokens,
    WorkerInfo,
)

KV = KvFormat(fingerprint="f", dtype="float32", layout="l", block_size=16, num_layers=1, num_kv_heads=1, slice_bytes=64)


class ScriptedWorker:
    """A transport that answers from what the test puts in."""

    def __init__(self) -> None:
        self.epoch = 1
        self.events: queue.Queue[list[EngineEvent]] = queue.Queue()
        self.refuse: set[str] = set()
        self.seen: list[LaneRequest] = []
        self.gone = threading.Event()
        self.closed = False
        self.stuck = threading.Event()
        """Cleared: submits are."""
        self.stuck.set()
        self.kv: KvReport | None = None
        self.asked_from: list[int | None] = []

    def call(self, request: LaneRequest) -> LaneReply:
        if self.gone.is_set():
            raise TandemError("worker_lost", "gone")
        if not isinstance(request, Poll):
            self.seen.append(request)
        match request:
            case Hello():
                return HelloReply(worker=self.info(), load=Load())
            case Poll():
                try:
                    events = self.events.get(timeout=0.05)
                except queue.Empty:
                    events = []
                self.asked_from.append(request.kv_from)
                return PollReply(epoch=self.epoch, events=events, load=Load(running=len(events)), kv=self.kv)
            case Submit():
                self.stuck.wait(20.0)
                ids = [work.request_id for work in request.work]
                return SubmitReply(
                    refused=[Failed(request_id=i, code="overloaded", message="full") for i in ids if i in self.refuse]
                )
            case Cancel() | Leave():
                return Done()
        return Refused(code="not_found", message="?")

    def close(self) -> None:
        self.closed = True

    def info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id="w",
            epoch=self.epoch,
            stage="decode",
            engine="torch",
            kv=KV,
            vocab_size=10,
            max_model_len=10,
            max_batch_size=1,
        )


class Observer:
    """Keeps what the lane tells."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.told: list[str] = []
        self.reports: list[KvReport] = []

    def greeted(self, lane: LaneClient) -> None:
        assert lane.info is not None
        self.told.append(f"greeted {lane.info.epoch}")
        self.arrived.set()

    def polled(self, lane: LaneClient, reply: PollReply) -> None:
        if reply.kv is not None:
            self.reports.append(reply.kv)
            lane.kv_from = reply.kv.first + len(reply.kv.events)

    def lost(self, lane: LaneClient) -> None:
        assert lane.info is None
        self.told.append("lost")


def work(request_id: str) -> Generate:
    return Generate(request_id=request_id, token_ids=[1], sampling=Sampling(), stopping=Stopping(max_tokens=4))


def on_lane(test: Callable[[LaneClient, ScriptedWorker], object]) -> None:
    """Run an asynchronous test against a greeted lane, and end the lane whatever happens."""

    async def run() -> None:
        worker, observer = ScriptedWorker(), Observer()
        loop = asyncio.get_running_loop()
        lane = LaneClient("lane", Replica(Worker(name="w", stage="decode")), worker, loop, observer)
        lane.start()
        try:
            await asyncio.wait_for(observer.arrived.wait(), 10)
            await asyncio.wait_for(test(lane, worker), 20)  # type: ignore[arg-type]
        finally:
            await asyncio.to_thread(lane.stop)

    asyncio.run(run())


def test_events_reach_the_mailbox_of_their_request() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        first, second = await asyncio.gather(lane.submit(work("a")), lane.submit(work("b")))
        worker.events.put([Tokens(request_id="b", index=0, token_ids=[5]), Finished(request_id="b", reason="length")])
        worker.events.put([Tokens(request_id="a", index=0, token_ids=[6])])
        assert [type(event) for event in await second.take()] == [Tokens, Finished]
        assert (await first.take())[0] == Tokens(request_id="a", index=0, token_ids=[6])

    on_lane(test)


def test_a_refusal_comes_back_to_the_request_it_is_about() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        worker.refuse = {"b"}
        results = await asyncio.gather(*(lane.submit(work(name)) for name in ("a", "b", "c")), return_exceptions=True)
        refused = [result for result in results if isinstance(result, TandemError)]
        assert [error.code for error in refused] == ["overloaded"]
        assert isinstance(results[1], TandemError)
        assert lane.outstanding == 2

    on_lane(test)


def test_a_restart_ends_what_was_running_and_greets_the_new_epoch() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        mailbox = await lane.submit(work("a"))
        worker.epoch = 2
        events = await mailbox.take()
        assert isinstance(events[0], Failed)
        assert events[0].code == "worker_lost"
        while lane.info is None or lane.info.epoch != 2:
            await asyncio.sleep(0.01)

    on_lane(test)


def test_a_worker_that_is_gone_fails_its_requests_and_new_ones() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        mailbox = await lane.submit(work("a"))
        worker.gone.set()
        assert isinstance((await mailbox.take())[0], Failed)
        with pytest.raises(TandemError) as caught:
            await lane.submit(work("b"))
        assert caught.value.code == "worker_lost"

    on_lane(test)


def test_a_lane_that_was_lost_is_left_before_the_worker_is_greeted_again() -> None:
    """What the worker still has of it, in the same epoch, nobody waits for any more."""

    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        await lane.submit(work("a"))
        worker.gone.set()
        while lane.info is not None:
            await asyncio.sleep(0.01)
        worker.seen.clear()
        worker.gone.clear()
        while lane.info is None:
            await asyncio.sleep(0.01)
        assert worker.seen[:2] == [Leave(lane="lane"), Hello()]
        await asyncio.to_thread(lane.stop)
        assert worker.seen[-1] == Leave(lane="lane")
        assert worker.closed
        with pytest.raises(TandemError, match="worker w is gone"):
            await lane.call(Hello())

    on_lane(test)


def test_a_loss_ends_calls_that_are_stuck_on_their_way() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        try:
            worker.stuck.clear()
            waiting = asyncio.ensure_future(lane.submit(work("a")))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            worker.gone.set()
            with pytest.raises(TandemError, match="gone"):
                await waiting
        finally:
            worker.stuck.set()

    on_lane(test)


def test_cancels_that_wait_become_one_call() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        for name in "abcdef":
            lane.cancel(name)
        await lane.submit(work("last"))
        cancelled = [i for request in worker.seen if isinstance(request, Cancel) for i in request.request_ids]
        assert cancelled == list("abcdef")

    on_lane(test)


def test_a_worker_without_an_engine_is_lost_at_once_and_found_again() -> None:
    """Epoch 0 in a poll's reply: new work must not go there."""

    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        worker.epoch = 0
        while lane.info is not None:
            await asyncio.sleep(0.01)
        with pytest.raises(TandemError, match="worker w is not ready"):
            await lane.submit(work("a"))
        worker.epoch = 7
        while lane.info is None or lane.info.epoch != 7:
            await asyncio.sleep(0.01)
        await lane.submit(work("b"))
        assert [request.epoch for request in worker.seen if isinstance(request, Submit)] == [7]

    on_lane(test)


def test_what_waits_to_be_sent_still_leaves_when_the_lane_ends() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        for name in "abc":
            lane.cancel(name)
        await asyncio.to_thread(lane.stop)
        cancelled = [i for request in worker.seen if isinstance(request, Cancel) for i in request.request_ids]
        assert cancelled == list("abc")

    on_lane(test)


def test_a_request_that_is_closed_is_no_longer_outstanding() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        await lane.submit(work("a"))
        await lane.submit(work("b"))
        assert lane.outstanding == 2
        lane.close("a")
        worker.events.put([Tokens(request_id="a", index=0, token_ids=[1])])  # late: nobody's
        assert lane.outstanding == 1

    on_lane(test)


def test_the_observer_hears_of_every_coming_and_going() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        observer = lane._observer
        assert isinstance(observer, Observer)
        worker.epoch = 2
        while len(observer.told) < 3:
            await asyncio.sleep(0.01)
        assert observer.told == ["greeted 1", "lost", "greeted 2"]

    on_lane(test)


def test_reports_of_the_prefix_cache_are_asked_for_and_handed_over() -> None:
    async def test(lane: LaneClient, worker: ScriptedWorker) -> None:
        observer = lane._observer
        assert isinstance(observer, Observer)
        assert set(worker.asked_from) <= {None}  # nobody wants them yet
        lane.kv_from = 4
        worker.kv = KvReport(first=4, events=[BlocksStored(hashes=[1]), BlocksStored(hashes=[2])])
        while 6 not in worker.asked_from:
            await asyncio.sleep(0.01)
        assert observer.reports[0] == worker.kv

    on_lane(test)
