"""How workers meet, and which of them a request gets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from tandem.deployment import Deployment, Model, Worker
from tandem.errors import TandemError
from tandem.messages import (
    Done,
    Hello,
    HelloReply,
    KvFormat,
    LaneReply,
    LaneRequest,
    Load,
    Pair,
    Poll,
    PollReply,
    Refused,
    StageName,
    TransferInfo,
    WorkerInfo,
)
from tandem.orchestrator import fleet as fleet_module
from tandem.orchestrator.fleet import Fleet

DEADLINE_S = 20.0
KV = KvFormat(fingerprint="f", dtype="bfloat16", layout="l", block_size=16)


class Remote:
    """A worker at the far end of its lane, as a transport."""

    def __init__(self, name: str, stage: StageName, kv: KvFormat) -> None:
        self.info = WorkerInfo(
            worker_id=name,
            epoch=1,
            stage=stage,
            engine="torch",
            kv=kv,
            vocab_size=10,
            max_model_len=10,
            max_batch_size=1,
            transfer=TransferInfo(agent_name=name, agent_metadata=b"", address=0, block_bytes=64, num_blocks=4),
        )
        self.ready = True
        self.load = Load()
        self.peers: list[WorkerInfo] = []
        self.news = threading.Event()

    def call(self, request: LaneRequest) -> LaneReply:
        match request:
            case Poll():
                self.news.wait(0.02)
                return PollReply(epoch=self.info.epoch if self.ready else 0, events=[], load=self.load)
            case Hello() if self.ready:
                return HelloReply(worker=self.info, load=self.load)
            case Pair():
                self.peers.append(request.peer)
                return Done()
        return Refused(code="worker_lost", message="starting")

    def restart(self) -> None:
        self.info = msgspec.structs.replace(self.info, epoch=self.info.epoch + 1)
        self.ready = True


class Site:
    """A fleet and the workers behind it."""

    def __init__(self, each: int, decode_kv: KvFormat) -> None:
        self.remotes = {f"prefill_{n}": Remote(f"prefill_{n}", "prefill", KV) for n in range(each)}
        self.remotes |= {f"decode_{n}": Remote(f"decode_{n}", "decode", decode_kv) for n in range(each)}
        workers = [Worker(name=name, stage=remote.info.stage) for name, remote in self.remotes.items()]
        deployment = Deployment(name="test", model=Model(path="/nowhere"), worker=workers)
        self.fleet = Fleet(deployment, lambda worker: self.remotes[worker.name])

    async def route(self) -> tuple[str, str]:
        prefill, decode = await asyncio.wait_for(self.fleet.route(), DEADLINE_S)
        return prefill.worker.name, decode.worker.name


def on_site(test: Callable[[Site], Awaitable[None]], each: int = 1, decode_kv: KvFormat = KV) -> None:
    """Run a test with ``each`` prefill and decode workers."""

    async def run() -> None:
        site = Site(each, decode_kv)
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


def test_workers_that_do_not_fit_are_never_paired(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_module, "WORKER_WAIT_S", 1.0)

    async def test(site: Site) -> None:
        with pytest.raises(TandemError) as caught:
            await site.route()
        assert caught.value.code == "worker_lost"
        assert "no prefill worker is ready" in caught.value.message
        assert site.remotes["decode_0"].peers == []

    on_site(test, decode_kv=msgspec.structs.replace(KV, dtype="float32"))
    assert "dtype" in caplog.text
    assert "float32" in caplog.text


def test_a_request_waits_for_a_worker_that_starts_again() -> None:
    async def test(site: Site) -> None:
        await site.route()
        decode = site.remotes["decode_0"]
        decode.ready = False
        await until(lambda: site.fleet._lanes["decode_0"].info is None)
        waiting = asyncio.ensure_future(site.route())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        decode.restart()
        assert await waiting == ("prefill_0", "decode_0")
        assert site.remotes["prefill_0"].peers[-1].epoch == 2

    on_site(test)


def test_a_request_that_waits_can_be_cancelled() -> None:
    async def test(site: Site) -> None:
        site.remotes["decode_0"].ready = False
        await until(lambda: site.fleet._lanes["prefill_0"].info and not site.fleet._lanes["decode_0"].info)
        waiting = asyncio.ensure_future(site.route())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    on_site(test)


def test_the_worker_with_less_in_hand_is_chosen_and_a_lost_one_is_not() -> None:
    async def test(site: Site) -> None:
        await until(lambda: all(len(lane.paired_with) == 2 for lane in site.fleet._lanes.values()))
        site.remotes["prefill_0"].load = Load(queued=3)
        site.remotes["decode_0"].load = Load(running=2)
        await until(lambda: site.fleet._lanes["prefill_0"].load.queued and site.fleet._lanes["decode_0"].load.running)
        assert await site.route() == ("prefill_1", "decode_1")
        site.remotes["decode_1"].ready = False
        await until(lambda: site.fleet._lanes["decode_1"].info is None)
        assert await site.route() == ("prefill_1", "decode_0")

    on_site(test, each=2)
