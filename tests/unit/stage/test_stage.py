"""A whole stage over a real engine process: lanes, plain clients, refusals, loss."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.drain import drain
from tandem.errors import TandemError
from tandem.messages import (
    PROTOCOL_VERSION,
    BlocksStored,
    Cancel,
    Done,
    EngineEvent,
    Failed,
    Finished,
    Hello,
    HelloReply,
    KvEvent,
    KvReport,
    LaneReply,
    LaneRequest,
    Leave,
    Pair,
    Poll,
    PollReply,
    Refused,
    Submit,
    SubmitReply,
    Tokens,
    WorkerInfo,
)
from tandem.stage.metrics import StageMetrics
from tandem.stage.stage import Stage
from tests.unit.stage.engines import DEADLINE_S, DEPLOYMENT, WORKER, engine_processes, use_engine, wait_until, work

FINISHED = Finished(request_id="a", reason="stop")


class Worker:
    """A stage as an orchestrator with one lane sees it."""

    def __init__(self, stage: Stage, metrics: StageMetrics, directory: Path) -> None:
        self.stage, self.metrics, self.directory = stage, metrics, directory
        self.info: WorkerInfo = stage.start()

    def call(self, request: LaneRequest) -> LaneReply:
        replies: queue.Queue[LaneReply] = queue.Queue()
        self.stage.handle(request, replies.put)
        return replies.get(timeout=DEADLINE_S)

    def submit(self, *request_ids: str, epoch: int | None = None) -> list[Failed]:
        epoch = self.info.epoch if epoch is None else epoch
        reply = self.call(Submit(lane="l", epoch=epoch, work=[work(i, 7) for i in request_ids]))
        assert isinstance(reply, SubmitReply)
        return reply.refused

    def poll(self, wait_s: float = DEADLINE_S, kv_from: int | None = None) -> PollReply:
        reply = self.call(Poll(lane="l", wait_s=wait_s, kv_from=kv_from))
        assert isinstance(reply, PollReply)
        return reply

    def drain(self, timeout_s: float = DEADLINE_S) -> bool:
        return drain(self.directory, timeout_s)

    def refusals(self, reason: str) -> float | None:
        labels = {"stage": "prefill", "worker": "prefill_0", "reason": reason}
        return self.metrics.registry.get_sample_value("tandem_refusals_total", labels)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    file = use_engine(tmp_path, monkeypatch, "create")
    metrics = StageMetrics("prefill", WORKER.name)
    stage = Stage(DEPLOYMENT, file, WORKER, metrics)
    yield Worker(stage, metrics, tmp_path)
    stage.stop()


def test_work_goes_in_and_its_events_come_by_the_lane(worker: Worker) -> None:
    greeting = worker.call(Hello())
    assert isinstance(greeting, HelloReply)
    assert greeting.worker == worker.info
    assert worker.submit("a") == []
    reply = worker.poll()
    assert reply.events == [Tokens(request_id="a", index=0, token_ids=[7]), FINISHED]
    assert (reply.epoch, reply.load.steps) == (worker.info.epoch, 1)


def test_changes_of_the_prefix_cache_come_with_the_polls(worker: Worker) -> None:
    """From where the caller stands, in its epoch; a new engine begins at 1 with nothing."""
    worker.submit("a", "b")
    wait_until(lambda: worker.poll(wait_s=0.0).load.steps == 2)
    stored: list[KvEvent] = [BlocksStored(hashes=[7])] * 2
    assert worker.poll(wait_s=0.0, kv_from=1).kv == KvReport(first=1, events=stored)
    assert worker.poll(wait_s=0.0, kv_from=2).kv == KvReport(first=2, events=stored[1:])
    assert worker.poll(wait_s=0.0, kv_from=3).kv is None
    assert worker.poll(wait_s=0.0).kv is None
    worker.submit("raise")
    wait_until(lambda: worker.poll(wait_s=0.0, kv_from=3).epoch not in (0, worker.info.epoch))
    assert worker.poll(wait_s=0.0, kv_from=1).kv is None
    assert worker.poll(wait_s=0.0, kv_from=3).kv == KvReport(first=0, events=[], is_snapshot=True)


def test_a_poll_is_answered_when_its_time_is_over(worker: Worker) -> None:
    assert worker.poll(wait_s=0.01) == PollReply(epoch=worker.info.epoch, events=[], load=worker.poll(0.0).load)


def test_more_than_fits_is_refused_with_the_limit(worker: Worker) -> None:
    """``max_queue`` and ``max_batch_size`` together are five."""
    refused = worker.submit("a", "b", "c", "d", "e", "f", "g")
    assert [failed.request_id for failed in refused] == ["f", "g"]
    assert refused[0].code == "overloaded"
    assert "prefill_0 has 5 requests in hand" in refused[0].message
    assert worker.refusals("overloaded") == 2


def test_work_for_an_earlier_epoch_is_refused(worker: Worker) -> None:
    (refused,) = worker.submit("a", epoch=worker.info.epoch - 1)
    assert refused.code == "worker_lost"
    assert "restarted" in refused.message


def test_cancelling_gives_up_leases_too(worker: Worker) -> None:
    """The engine of this test counts what it is asked to cancel as expired."""
    assert worker.call(Cancel(request_ids=["a", "b"])) == Done()
    wait_until(lambda: worker.poll(wait_s=0.0).load.handles_expired == 2)


def test_a_lost_engine_ends_its_requests_and_its_epoch(worker: Worker) -> None:
    assert worker.submit("thread") == []
    reply = worker.poll()
    (failed,) = reply.events
    assert isinstance(failed, Failed)
    assert failed.code == "worker_lost"
    assert failed.message.startswith("the engine of worker prefill_0 ended: exit status 1")
    assert reply.epoch != worker.info.epoch
    wait_until(lambda: worker.stage.info)
    again = worker.call(Hello())
    assert isinstance(again, HelloReply)
    assert again.worker.epoch not in (0, worker.info.epoch)
    assert worker.submit("a", epoch=again.worker.epoch) == []
    assert FINISHED in worker.poll().events
    assert worker.metrics.registry.get_sample_value(
        "tandem_engine_restarts_total", {"stage": "prefill", "worker": "prefill_0"}
    )


def test_an_idle_lane_hears_of_a_loss_at_once(worker: Worker) -> None:
    """Else it would send work to a worker that has no engine."""
    replies: queue.Queue[LaneReply] = queue.Queue()
    worker.stage.handle(Poll(lane="idle", wait_s=10 * DEADLINE_S), replies.put)
    worker.submit("raise")
    reply = replies.get(timeout=DEADLINE_S)
    assert isinstance(reply, PollReply)
    assert reply.epoch != worker.info.epoch


def test_while_there_is_no_engine_everything_is_refused(worker: Worker) -> None:
    sink: list[EngineEvent] = []
    worker.stage._keeper.stop()
    for reply in (worker.call(Hello()), worker.call(Pair(peer=worker.info))):
        assert isinstance(reply, Refused)
        assert reply.code == "worker_lost"
        assert "prefill_0 is starting; try again in 1 s" in reply.message
    assert [failed.code for failed in worker.submit("a")] == ["worker_lost"]
    with pytest.raises(TandemError, match="prefill_0 is starting"):
        worker.stage.submit_direct(work("a"), sink.extend)
    assert sink == []


def test_plain_clients_get_their_own_events(worker: Worker) -> None:
    sinks: list[queue.Queue[list[EngineEvent]]] = [queue.Queue(), queue.Queue()]
    ids = [worker.stage.submit_direct(work("same", n), sink.put) for n, sink in enumerate(sinks)]
    assert len(set(ids)) == 2
    for n, (request_id, sink) in enumerate(zip(ids, sinks, strict=True)):
        assert sink.get(timeout=DEADLINE_S) == [
            Tokens(request_id=request_id, index=0, token_ids=[n]),
            Finished(request_id=request_id, reason="stop"),
        ]


def test_plain_clients_hear_of_a_loss(worker: Worker) -> None:
    sink: queue.Queue[list[EngineEvent]] = queue.Queue()
    (engine,) = engine_processes()
    engine.suspend()
    request_id = worker.stage.submit_direct(work("a", 1), sink.put)
    engine.kill()
    (failed,) = sink.get(timeout=DEADLINE_S)
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.code) == (request_id, "worker_lost")
    assert "SIGKILL" in failed.message


def test_the_silence_of_an_engine_that_was_stopped_is_told(worker: Worker) -> None:
    """Polls are answered all the same. An engine that lives speaks twice a second."""
    wait_until(lambda: worker.poll(wait_s=0.0).load.silent_s > 0.0)  # it has spoken
    (engine,) = engine_processes()
    engine.suspend()
    wait_until(lambda: worker.poll(wait_s=0.0).load.silent_s > 1.5)
    engine.resume()
    wait_until(lambda: worker.poll(wait_s=0.0).load.silent_s < 1.0)


def test_stopping_answers_every_poll_and_ends_every_request(worker: Worker) -> None:
    replies: queue.Queue[LaneReply] = queue.Queue()
    worker.stage.handle(Poll(lane="idle", wait_s=10 * DEADLINE_S), replies.put)
    worker.stage.stop()
    reply = replies.get(timeout=DEADLINE_S)
    assert isinstance(reply, PollReply)
    assert worker.poll(wait_s=10 * DEADLINE_S).events == []


def test_who_speaks_another_version_is_refused(worker: Worker) -> None:
    reply = worker.call(Hello(protocol_version=1))
    assert isinstance(reply, Refused)
    assert reply.code == "worker_incompatible"
    expected = f"worker prefill_0 speaks protocol version {PROTOCOL_VERSION}, and was greeted in version 1"
    assert expected in reply.message


def test_a_lane_that_is_left_is_forgotten_with_its_requests(worker: Worker) -> None:
    """The engine of this test counts what it is asked to cancel as expired."""
    (engine,) = engine_processes()
    engine.suspend()
    assert worker.submit("a", "b") == []
    assert worker.call(Leave(lane="l")) == Done()
    engine.resume()
    wait_until(lambda: worker.poll(wait_s=0.0).load.handles_expired == 2)
    assert worker.poll(wait_s=0.0).events == []


def test_draining_is_told_at_once_and_ends_when_all_lanes_are_left(worker: Worker) -> None:
    """What was on its way is still taken; plain clients are sent elsewhere."""
    replies: queue.Queue[LaneReply] = queue.Queue()
    worker.stage.handle(Poll(lane="l", wait_s=10 * DEADLINE_S), replies.put)
    assert not worker.drain(timeout_s=0.0)
    told = replies.get(timeout=DEADLINE_S)
    assert isinstance(told, PollReply)
    assert told.draining
    greeting = worker.call(Hello())
    assert isinstance(greeting, HelloReply)
    assert greeting.draining
    assert worker.submit("a") == []
    assert FINISHED in worker.poll().events
    with pytest.raises(TandemError, match="prefill_0 is about to end"):
        worker.stage.submit_direct(work("b"), lambda _: None)
    assert not worker.drain(timeout_s=0.2)
    worker.call(Leave(lane="l"))
    assert worker.drain()


def test_draining_has_a_limit(worker: Worker) -> None:
    worker.stage._drain_s = 0.2
    (engine,) = engine_processes()
    engine.suspend()
    try:
        worker.submit("a")
        assert worker.drain()
        (failed,) = worker.poll().events
    finally:
        engine.resume()
    assert isinstance(failed, Failed)
    assert failed.code == "worker_lost"
    assert failed.message == "worker prefill_0 is shutting down; limits.drain_s, 0.2 s, are over"


def test_a_request_in_hand_is_not_ended_by_another_with_its_id(worker: Worker) -> None:
    """Whoever sends the second one: it is refused, and the first one's events go where they belong."""
    assert [(f.request_id, f.code) for f in worker.submit("a", "b", "a")] == [("a", "invalid_request")]
    reply = worker.call(Submit(lane="other", epoch=worker.info.epoch, work=[work("b", 7)]))
    assert isinstance(reply, SubmitReply)
    if reply.refused:  # it has not ended yet
        assert reply.refused[0].code == "invalid_request"
    ended: set[str] = set()
    while ended != {"a", "b"}:
        ended |= {e.request_id for e in worker.poll().events if isinstance(e, Finished)}


@pytest.mark.parametrize("wait_s", [float("nan"), float("inf"), -0.5, 1e308])
def test_a_poll_that_would_never_be_answered_is_refused(worker: Worker, wait_s: float) -> None:
    reply = worker.call(Poll(lane="l", wait_s=wait_s))
    assert isinstance(reply, Refused)
    assert reply.code == "invalid_request"
    assert "wait_s" in reply.message
