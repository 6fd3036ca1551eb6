"""Workers elsewhere, which come, drain, go, and do not fit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from tandem.deployment import Deployment, Model, Worker
from tandem.lanes import discovery as discovery_module
from tandem.lanes.replica import Replica
from tandem.messages import PROTOCOL_VERSION
from tandem.orchestrator import fleet as fleet_module
from tandem.orchestrator.fleet import Fleet
from tests.unit.orchestrator.test_fleet import DEADLINE_S, EVENLY, KV, PROMPT, Remote, Site, until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(fleet_module, "WATCH_S", 0.02)


class Elsewhere(Site):
    """One prefill worker here, decode workers wherever the name ``decode`` points to."""

    def __init__(self) -> None:
        self.hosts = ["10.0.0.1"]
        self.remotes = {"prefill_0": Remote("prefill_0", "prefill", KV)}
        workers = [
            Worker(name="prefill_0", stage="prefill"),
            Worker(name="decode", stage="decode", address="decode:8001"),
        ]
        deployment = Deployment(name="test", model=Model(path="/nowhere"), worker=workers, routing=EVENLY)
        self.fleet = Fleet(deployment, self.remote, lambda _: list(self.hosts))

    def remote(self, replica: Replica) -> Remote:
        return self.remotes.setdefault(replica.name, Remote(replica.name, replica.stage, KV))

    async def joined(self, host: str) -> None:
        await until(lambda: self.paired(f"decode@{host}:8001"))

    def paired(self, name: str) -> bool:
        lane = self.fleet._lanes.get(name)
        return lane is not None and lane.info is not None and lane.info in self.remotes["prefill_0"].peers


def elsewhere(test: Callable[[Elsewhere], Awaitable[None]]) -> None:
    async def run() -> None:
        site = Elsewhere()
        site.fleet.start()
        try:
            await asyncio.wait_for(test(site), 3 * DEADLINE_S)
        finally:
            await asyncio.to_thread(site.fleet.stop)

    asyncio.run(run())


@pytest.mark.usefixtures("quick")
def test_who_comes_joins_and_who_has_gone_is_forgotten() -> None:
    """A worker that no name points to stays as long as it answers. A hundred that come and go leave nothing."""

    before = threading.active_count()

    async def test(site: Elsewhere) -> None:
        await site.joined("10.0.0.1")
        for number in range(2, 30):
            old, new = site.hosts[0], f"10.0.0.{number}"
            site.hosts[:] = [new]
            await site.joined(new)
            gone = site.remotes[f"decode@{old}:8001"]
            assert site.paired(f"decode@{old}:8001")
            gone.ready = False
            await until(lambda: gone.closed and gone.info.worker_id in site.remotes["prefill_0"].parted)  # noqa: B023
            assert await site.route() == ("prefill_0", f"decode@{new}:8001")
        assert len(site.fleet._lanes) == 2
        assert len(site.fleet._router._table.names) == 3
        assert threading.active_count() < before + 12

    elsewhere(test)


@pytest.mark.usefixtures("quick")
def test_a_worker_that_drains_is_left_when_nothing_is_on_its_way_to_it() -> None:
    async def test(site: Elsewhere) -> None:
        site.hosts.append("10.0.0.2")
        await site.joined("10.0.0.1")
        await site.joined("10.0.0.2")
        running = [await site.fleet.route(site.fleet.query(PROMPT, 8)) for _ in range(2)]
        first = running[0].decode
        remote = site.remotes[first.worker.name]
        remote.draining = True
        await until(lambda: first.draining)
        other = running[1].decode.worker.name
        assert {(await site.route())[1] for _ in range(5)} == {other}
        await asyncio.sleep(0.2)
        assert first.info is not None
        assert remote.left == 0
        running[0].route.end()
        await until(lambda: first.info is None and remote.left == 1)
        remote.draining = False
        remote.restart()  # on the same address
        await until(lambda: site.paired(first.worker.name))
        assert not first.draining

    elsewhere(test)


@pytest.mark.usefixtures("quick")
def test_a_worker_is_reached_by_one_address_only(caplog: pytest.LogCaptureFixture) -> None:
    async def test(site: Elsewhere) -> None:
        await site.joined("10.0.0.1")
        site.remotes["decode@10.0.0.2:8001"] = Remote("decode@10.0.0.1:8001", "decode", KV)
        site.hosts.append("10.0.0.2")
        await until(lambda: "it is decode@10.0.0.1:8001, reached by another address" in caplog.text)
        assert await site.route() == ("prefill_0", "decode@10.0.0.1:8001")

    elsewhere(test)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol_version": 1}, f"protocol_version is {PROTOCOL_VERSION} here and 1 there"),
        ({"stage": "both"}, "stage is 'decode' here and 'both' there"),
        ({"kv": msgspec.structs.replace(KV, block_size=8)}, "kv.block_size is 16 here and 8 there"),
        ({"kv": msgspec.structs.replace(KV, fingerprint="g")}, "kv.fingerprint is 'f' here and 'g' there"),
        ({"kv": msgspec.structs.replace(KV, layout="k")}, "kv.layout is 'l' here and 'k' there"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_strangers_are_refused(change: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(site: Elsewhere) -> None:
        await site.joined("10.0.0.1")
        stranger = Remote("stranger", "decode", KV)
        stranger.info = msgspec.structs.replace(stranger.info, **change)
        site.remotes["decode@10.0.0.2:8001"] = stranger
        site.hosts.append("10.0.0.2")
        await until(lambda: words in caplog.text)
        assert stranger.peers == []
        assert await site.route() == ("prefill_0", "decode@10.0.0.1:8001")

    elsewhere(test)


def test_workers_for_both_stages_alone_make_a_deployment() -> None:
    async def run() -> None:
        remotes = {f"both_{n}": Remote(f"both_{n}", "both", KV) for n in range(2)}
        workers = [Worker(name=name, stage="both") for name in remotes]
        deployment = Deployment(name="test", model=Model(path="/nowhere"), worker=workers, routing=EVENLY)
        fleet = Fleet(deployment, lambda replica: remotes[replica.name])
        fleet.start()
        try:
            prefill, decode, *_ = await asyncio.wait_for(fleet.route(fleet.query(PROMPT, 8)), DEADLINE_S)
            assert prefill is not None
            assert {prefill.worker.name, decode.worker.name} == set(remotes)
            remotes["both_1"].ready = False
            await until(lambda: fleet._lanes["both_1"].info is None)
            prefill, decode, *_ = await asyncio.wait_for(fleet.route(fleet.query(PROMPT, 8)), DEADLINE_S)
            assert (prefill, decode.worker.name) == (None, "both_0")
        finally:
            await asyncio.to_thread(fleet.stop)

    asyncio.run(run())
