"""How workers meet, and which of them a request gets."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from tandem.deployment import Deployment, Health, Model, Routing, Worker
from tandem.errors import TandemError
from tandem.kv.hashes import hash_blocks
from tandem.lanes.client import LaneClient
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
    Pair,
    Poll,
    PollReply,
    Refused,
    Role,
    Sampling,
    Stopping,
    Submit,
    SubmitReply,
    TransferInfo,
    Unpair,
    WorkerInfo,
)
from tandem.orchestrator import fleet as fleet_module
from tandem.orchestrator.fleet import Fleet

DEADLINE_S = 20.0
KV = KvFormat(
    fingerprint="f", dtype="bfloat16", layout="l", block_size=16, num_layers=1, num_kv_heads=1, slice_bytes=64
)
PROMPT = list(range(40))
EVENLY = Routing(policy="least_loaded", conditional_disaggregation=False)


class Remote:
    """A worker at the far end of its lane, as a transport."""

    def __init__(self, name: str, stage: Role, kv: KvFormat) -> None:
        self.info = WorkerInfo(
            worker_id=name,
            epoch=1,
            stage=stage,
            engine="torch",
            kv=kv,
            vocab_size=10,
            max_model_len=100,
            max_batch_size=1,
            transfers=[TransferInfo(agent_name=name, agent_metadata=b"", address=0, block_bytes=64, num_blocks=4)],
        )
        self.ready = True
        self.load = Load()
        self.kv: KvReport | None = None
        self.asked_from: int | None = None
        self.peers: list[WorkerInfo] = []
        self.parted: list[str] = []
        self.left = 0
        self.draining = False
        self.closed = False
        self.news = threading.Event()
        self.works = True
        self.events: list[EngineEvent] = []
        self.cancelled: list[str] = []

    def call(self, request: LaneRequest) -> LaneReply:
        match request:
            case Poll():
                self.news.wait(0.02)
                self.asked_from = request.kv_from
                epoch = self.info.epoch if self.ready else 0
                events, self.events = self.events, []
                return PollReply(epoch=epoch, events=events, load=self.load, kv=self.kv, draining=self.draining)
            case Submit():
                if self.works:
                    self.events += [Finished(request_id=work.request_id, reason="length") for work in request.work]
                return SubmitReply(refused=[])
            case Cancel():
                self.cancelled += request.request_ids
                return Done()
            case Hello() if self.ready:
                return HelloReply(worker=self.info, load=self.load, draining=self.draining)
            case Pair():
                self.peers.append(request.peer)
                return Done()
            case Unpair():
                self.parted.append(request.worker_id)
                return Done()
            case Leave():
                self.left += 1
                return Done()
        return Refused(code="worker_lost", message="starting")

    def close(self) -> None:
        self.closed = True

    def restart(self) -> None:
        self.info = msgspec.structs.replace(self.info, epoch=self.info.epoch + 1)
        self.ready = True


class Site:
    """A fleet and the workers behind it."""

    def __init__(self, each: int, decode_kv: KvFormat, routing: Routing) -> None:
        self.remotes = {f"prefill_{n}": Remote(f"prefill_{n}", "prefill", KV) for n in range(each)}
        self.remotes |= {f"decode_{n}": Remote(f"decode_{n}", "decode", decode_kv) for n in range(each)}
        workers = [Worker(name=name, stage=remote.info.stage) for name, remote in self.remotes.items()]
        health = Health(stall_s=0.1, back_off_s=0.1)
        deployment = Deployment(
            name="test", model=Model(path="/nowhere"), worker=workers, routing=routing, health=health
        )
        self.fleet = Fleet(deployment, lambda replica: self.remotes[replica.name])

    async def route(self) -> tuple[str | None, str]:
        """The names of the workers that a request gets, which ends at once."""
        prefill, decode, route, *_ = await asyncio.wait_for(self.fleet.route(self.fleet.query(PROMPT, 8)), DEADLINE_S)
        route.end()
        return prefill and prefill.worker.name, decode.worker.name

    async def all_met(self) -> None:
        await until(lambda: all(lane.info for lane in self.fleet._lanes.values()) and not self.fleet._introductions)

    def lane(self, name: str) -> LaneClient:
        return self.fleet._lanes[name]


def on_site(
    test: Callable[[Site], Awaitable[None]],
    each: int = 1,
    decode_kv: KvFormat = KV,
    routing: Routing = EVENLY,
    late: Sequence[str] = (),
) -> None:
    """Run a test with ``each`` prefill and decode workers, of which those that are ``late`` are not ready yet."""

    async def run() -> None:
        site = Site(each, decode_kv, routing)
        for name in late:
            site.remotes[name].ready = False
        site.fleet.start()
        try:
            await asyncio.wait_for(test(site), 3 * DEADLINE_S)
        finally:
            await asyncio.to_thread(site.fleet.stop)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_workers_that_fit_are_introduced_to_each_other() -> None:
    async def test(site: Site) -> None:
        assert await site.route() == ("prefill_0", "decode_0")
        prefill, decode = site.remotes["prefill_0"], site.remotes["decode_0"]
        assert decode.info in prefill.peers
        assert prefill.info in decode.peers

    on_site(test)


def test_a_worker_that_does_not_fit_is_refused_and_told_in_what_it_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_module, "MEETING_S", 0.5)

    async def test(site: Site) -> None:
        assert await site.route() == (None, "prefill_0")
        assert site.remotes["decode_0"].peers == site.remotes["prefill_0"].peers == []
        assert "worker decode_0 is refused: kv.dtype is 'bfloat16' here and 'float32' there" in caplog.text

    on_site(test, decode_kv=msgspec.structs.replace(KV, dtype="float32"))
    assert caplog.text.count("is refused") == 1  # it is asked again and again


def test_a_worker_that_is_early_waits_for_the_others() -> None:
    """Before all have met, nobody does the work of two."""

    async def test(site: Site) -> None:
        waiting = asyncio.ensure_future(site.route())
        await until(lambda: site.lane("decode_0").info)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        site.remotes["prefill_0"].ready = True
        assert await waiting == ("prefill_0", "decode_0")

    on_site(test, late=["prefill_0"])


def test_one_stage_stands_in_for_the_other_until_it_is_back() -> None:
    async def test(site: Site) -> None:
        await site.route()
        decode = site.remotes["decode_0"]
        decode.ready = False
        await until(lambda: site.lane("decode_0").info is None)
        assert await site.route() == (None, "prefill_0")
        decode.restart()
        await until(lambda: site.remotes["prefill_0"].peers[-1].epoch == 2)
        await until(lambda: site.fleet._router._table.paired_bar() is not None)
        assert await site.route() == ("prefill_0", "decode_0")

    on_site(test)


def test_a_request_waits_for_a_worker_that_starts_again() -> None:
    async def test(site: Site) -> None:
        await site.route()
        for remote in site.remotes.values():
            remote.ready = False
        await until(lambda: not any(lane.info for lane in site.fleet._lanes.values()))
        waiting = asyncio.ensure_future(site.route())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        site.remotes["decode_0"].restart()
        assert await waiting == (None, "decode_0")

    on_site(test)


def test_a_request_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "WORKER_WAIT_S", 0.5)

    async def test(site: Site) -> None:
        await site.all_met()
        for remote in site.remotes.values():
            remote.ready = False
        await until(lambda: not any(lane.info for lane in site.fleet._lanes.values()))
        with pytest.raises(TandemError) as caught:
            await site.route()
        assert caught.value.code == "worker_lost"
        assert "no prefill worker is ready (deployed: prefill_0)" in caught.value.message
        with pytest.raises(TandemError, match="no worker is ready"):
            await site.fleet.max_model_len()

    on_site(test)


def test_a_request_that_has_begun_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next best worker may be the one that is coming back."""
    monkeypatch.setattr(fleet_module, "WORKER_WAIT_S", 0.0)

    async def test(site: Site) -> None:
        await site.all_met()
        for remote in site.remotes.values():
            remote.ready = False
        await until(lambda: not any(lane.info for lane in site.fleet._lanes.values()))
        waiting = asyncio.ensure_future(
            site.fleet.route(site.fleet.query(PROMPT, 8), avoid={"decode_0"}, patience_s=math.inf)
        )
        await asyncio.sleep(0.1)
        assert not waiting.done()
        site.remotes["decode_0"].restart()
        assignment = await asyncio.wait_for(waiting, DEADLINE_S)
        assignment.route.end()
        assert (assignment.prefill, assignment.decode.worker.name) == (None, "decode_0")

    on_site(test)


def test_a_request_that_waits_can_be_cancelled() -> None:
    async def test(site: Site) -> None:
        for remote in site.remotes.values():
            remote.ready = False
        await until(lambda: not any(lane.info for lane in site.fleet._lanes.values()))
        waiting = asyncio.ensure_future(site.route())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    on_site(test)


def test_the_worker_with_less_in_hand_is_chosen_and_a_lost_one_is_not() -> None:
    async def test(site: Site) -> None:
        await site.all_met()
        site.remotes["prefill_0"].load = Load(queued=3)
        site.remotes["decode_0"].load = Load(running=2)
        await until(lambda: site.lane("prefill_0").load.queued and site.lane("decode_0").load.running)
        assert await site.route() == ("prefill_1", "decode_1")
        site.remotes["decode_1"].ready = False
        await until(lambda: site.lane("decode_1").info is None)
        assert await site.route() == ("prefill_1", "decode_0")

    on_site(test, each=2)


def test_a_request_counts_until_its_route_ends() -> None:
    async def test(site: Site) -> None:
        await site.all_met()
        first = await site.fleet.route(site.fleet.query(PROMPT, 8))
        second = await site.fleet.route(site.fleet.query(PROMPT, 8))
        assert first.prefill is not second.prefill
        assert first.decode is not second.decode
        first.route.end()
        assert await site.route() == (first.prefill and first.prefill.worker.name, first.decode.worker.name)

    on_site(test, each=2)


def test_a_request_goes_where_its_prompt_is_cached() -> None:
    """Reports are asked for from the first change on, and after a restart anew."""

    async def test(site: Site) -> None:
        await site.all_met()
        remote = site.remotes["prefill_1"]
        await until(lambda: remote.asked_from == 1)
        remote.kv = KvReport(first=1, events=[BlocksStored(hashes=hash_blocks(PROMPT, 16))])
        await until(lambda: remote.asked_from == 2)
        assert {(await site.route())[0] for _ in range(20)} == {"prefill_1"}
        remote.ready, remote.kv = False, None
        await until(lambda: site.lane("prefill_1").info is None)
        remote.restart()
        await until(lambda: site.lane("prefill_1").info and remote.asked_from == 1)

    on_site(test, each=2, routing=Routing(conditional_disaggregation=False))


def test_what_failed_a_request_is_avoided_where_there_is_somebody_else() -> None:
    async def test(site: Site) -> None:
        await site.all_met()
        for avoid, expected in [
            ({"prefill_0", "decode_1"}, ("prefill_1", "decode_0")),
            ({"decode_0", "decode_1", "prefill_1"}, (None, "prefill_0")),
        ]:
            prefill, decode, route, *_ = await site.fleet.route(site.fleet.query(PROMPT, 8), avoid=avoid)
            route.end()
            assert (prefill and prefill.worker.name, decode.worker.name) == expected
        everybody = site.remotes.keys()
        prefill, _, route, *_ = await site.fleet.route(site.fleet.query(PROMPT, 8), avoid=everybody)
        route.end()
        assert prefill is not None
        assert site.fleet.route_now(site.fleet.query(PROMPT, 8), avoid=everybody) is None

    on_site(test, each=2, routing=Routing(policy="round_robin", conditional_disaggregation=False))


def test_a_worker_that_hangs_gets_no_work_until_a_probe_has_come_back() -> None:
    async def test(site: Site) -> None:
        await site.all_met()
        remote, lane = site.remotes["decode_0"], site.lane("decode_0")
        remote.works, remote.load = False, Load(steps=5, step_seconds=0.1, running=1)
        work = Generate(request_id="a", token_ids=[1], sampling=Sampling(), stopping=Stopping(max_tokens=1))
        mailbox = await lane.submit(work)
        (failed,) = await asyncio.wait_for(mailbox.take(), DEADLINE_S)
        lane.close("a")
        assert isinstance(failed, Failed)
        assert failed.code == "worker_lost"
        assert "worker decode_0 hangs: its engine has work, and has made no step for" in failed.message
        assert lane.info is not None  # it does answer
        assert {(await site.route())[1] for _ in range(8)} == {"decode_1"}
        await until(lambda: remote.cancelled)  # a probe that did not come back
        assert {(await site.route())[1] for _ in range(8)} == {"decode_1"}
        remote.works, remote.load = True, Load(steps=6, step_seconds=0.1)
        await until(lambda: site.fleet._router._table.bar("decode").tolist().count(0.0) == 2)  # type: ignore[union-attr]
        assert lane.outstanding == 0

    on_site(test, each=2)
