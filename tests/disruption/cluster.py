"""One deployment over six hosts: two gateways, two prefill and two decode workers, each at a Triton of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tandem.cli.client import Client
from tandem.deployment import Deployment, Health, Kv, Limits, Model, Routing, Server, Worker, to_json
from tandem.errors import TandemError
from tandem.keys import KEY_BYTES, KEY_VARIABLE
from tandem.messages import Hello, HelloReply
from tests.hosts import Host, Hosts, make_hosts

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".tandem" / "models" / "smollm2-135m-instruct"
PORTS: dict[str, Any] = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
"""Of hosts that have no other servers."""
PARTS = ["gateway", "gateway", "prefill", "prefill", "decode", "decode"]
"""By host."""
DISK_BYTES = 96 << 20
"""Of the disk below each worker's KV memory, which can hold more."""
READY_S = 120.0
ENDED_S = 60.0
_TANDEM = [sys.executable, "-c", "from tandem.cli import app; app()"]


class Cluster:
    """The hosts, what runs there, and the names by which gateways find workers."""

    def __init__(self, hosts: Hosts, directory: Path, limits: Limits) -> None:
        self._hosts, self._directory, self._limits = hosts, directory, limits
        self._running: dict[str, subprocess.Popen[str]] = {}
        os.environ[KEY_VARIABLE] = secrets.token_hex(KEY_BYTES)  # of the servers, and of those who ask them
        self._names: dict[str, list[str]] = {}

    # ------------------------------------------------------------ where things are

    @property
    def gateways(self) -> list[Host]:
        return self.at("gateway")

    @property
    def workers(self) -> list[Host]:
        return self.at("prefill") + self.at("decode")

    def at(self, part: str) -> list[Host]:
        """The hosts of a part of the deployment."""
        return [host for host, its in zip(self._hosts.hosts, PARTS, strict=True) if its == part]

    def part_of(self, host: Host) -> str:
        return PARTS[self._hosts.hosts.index(host)]

    def worker_name(self, host: Host) -> str:
        """What gateways call its worker."""
        return f"{self.part_of(host)}@{url_of(host)}"

    def disk(self, host: Host) -> Path:
        """The disk below a worker's KV memory, as seen from outside."""
        return Path(f"/proc/{host.pid}/root{self._directory}/disk")

    def engine(self, host: Host) -> psutil.Process:
        """The engine process of a worker."""
        (engine,) = [p for p in host.processes() if "--worker" in p.cmdline()]
        return engine

    # ------------------------------------------------------------ starting and ending

    def set_up(self) -> None:
        """Names, disks, the deployment file; and everything is started."""
        for name in ("names", "switch"):
            (self._directory / name).touch()
        (self._directory / "switch").write_text("hosts: files\n")
        (self._directory / "disk").mkdir()
        (self._directory / "deployment.json").write_bytes(
            to_json(make_deployment(self._directory / "disk", self._limits))
        )
        for stage in ("prefill", "decode"):
            self.name(stage, [host.address for host in self.at(stage)])
        for host in self.gateways:
            for name, target in (("names", "/etc/hosts"), ("switch", "/etc/nsswitch.conf")):
                host.run(["mount", "--bind", str(self._directory / name), target])
        for host in self.workers:
            host.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "disk", str(self._directory / "disk")])
        for host in self._hosts.hosts:
            self.serve(host)
        for host in self._hosts.hosts:
            self.await_ready(host)

    def name(self, stage: str, addresses: list[str]) -> None:
        """From now on these are the addresses of a name."""
        self._names[stage] = addresses
        lines = [f"{address} {name}\n" for name, those in self._names.items() for address in those]
        (self._directory / "names").write_text("".join(lines))

    def serve(self, host: Host) -> None:
        """Start ``tandem serve`` on a host."""
        part = self.part_of(host)
        log = (self._directory / f"{host.name}.log").open("a")
        command = [*_TANDEM, "serve", str(self._directory / "deployment.json"), "--only", part]
        self._running[host.name] = host.popen(command, stdout=log, stderr=log)
        log.close()

    def terminate(self, host: Host) -> int:
        """Ask a server to stop, and wait for its end; its exit status."""
        for found in host.processes():
            if "serve" in found.cmdline():
                found.send_signal(signal.SIGTERM)
        return self._await_end(host)

    def kill(self, host: Host, which: Callable[[psutil.Process], bool]) -> None:
        """SIGKILL to some processes of a host; all others have to end by themselves."""
        for found in host.processes():
            with contextlib.suppress(psutil.Error):
                if which(found):
                    found.kill()
        self._await_end(host)

    def _await_end(self, host: Host) -> int:
        """Of the server, and of all that was started there; the server's exit status."""
        process = self._running.pop(host.name)
        process.send_signal(signal.SIGCONT)  # nsenter stops with what it runs, but does not go on with it
        status = process.wait(ENDED_S)
        await_true(lambda: not host.processes(), ENDED_S, lambda: f"left on {host.name}: {host.processes()}")
        return status

    def await_ready(self, host: Host) -> None:
        """Until a worker has an engine, or a gateway takes requests."""
        await_true(lambda: self._is_ready(host), READY_S, lambda: f"{host.name} ({self.part_of(host)}) is not ready")

    def _is_ready(self, host: Host) -> bool:
        if self.part_of(host) != "gateway":
            return self.epoch(host) is not None
        try:
            with contextlib.closing(triton.InferenceServerClient(url_of(host))) as client:
                return bool(client.is_model_ready("llm", client_timeout=1.0))
        except InferenceServerException:
            return False

    def end(self) -> None:
        """Servers are asked to stop, so that all that they made is taken away."""
        for host in self._hosts.hosts:
            for found in host.processes():
                with contextlib.suppress(psutil.Error):
                    found.send_signal(signal.SIGCONT)
                    if "serve" in found.cmdline():
                        found.send_signal(signal.SIGTERM)
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDED_S)

    # ------------------------------------------------------------ what they say

    def hello(self, host: Host) -> HelloReply | None:
        """What a worker says of itself; None while there is no engine."""
        try:
            with Client(url_of(host)) as client:
                reply = client.call(self.part_of(host), Hello())
        except TandemError:
            return None
        return reply if isinstance(reply, HelloReply) else None

    def epoch(self, host: Host) -> int | None:
        """Of the running engine; None while there is none."""
        reply = self.hello(host)
        return reply.worker.epoch if reply else None

    def leftovers(self) -> dict[str, Any]:
        """What workers hold for requests, and gateways have in hand: of those that have or do not answer."""
        found: dict[str, Any] = {}
        for host in self.workers:
            reply = self.hello(host)
            if reply is None:
                found[self.worker_name(host)] = "no answer"
                continue
            held = {n: getattr(reply.load, n) for n in ("queued", "running", "blocks_used", "handles_held")}
            if any(held.values()):
                found[self.worker_name(host)] = held
        for host in self.gateways:
            if in_flight := metric(host, "tandem_requests_in_flight"):
                found[f"gateway {host.name}"] = in_flight
        return found


def make_deployment(disk: Path, limits: Limits) -> Deployment:
    """In fp32: there a request gives the same tokens in any company."""
    common: dict[str, Any] = {"threads": 1, "kv_memory": "128MiB", "kv_disk": "1GiB", "kv_disk_path": str(disk)}
    port = PORTS["grpc_port"]
    return Deployment(
        name="disruption",
        model=Model(path=str(MODEL), dtype="float32", max_model_len=512),
        server=Server(host="0.0.0.0", **PORTS),
        worker=[
            Worker(name=stage, stage=stage, address=f"{stage}:{port}", **common) for stage in ("prefill", "decode")
        ],
        kv=Kv(lease_s=5.0, transfer_timeout_s=5.0),
        health=Health(silence_s=3.0, back_off_s=0.5),
        limits=limits,
        routing=Routing(conditional_disaggregation=False),
    )


@contextlib.contextmanager
def make_cluster(directory: Path, limits: Limits) -> Iterator[Cluster]:
    """All of it, running; ``directory`` takes names, logs and the deployment file."""
    with make_hosts(len(PARTS)) as hosts:
        cluster = Cluster(hosts, directory, limits)
        try:
            cluster.set_up()
            yield cluster
        finally:
            cluster.end()


def url_of(host: Host) -> str:
    return f"{host.address}:{PORTS['grpc_port']}"


def metric(host: Host, name: str) -> float:
    """The sum over all labels; 0 where there is none yet."""
    url = f"http://{host.address}:{PORTS['metrics_port']}/metrics"
    with urllib.request.urlopen(url, timeout=5.0) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def await_true(condition: Callable[[], bool], within_s: float, otherwise: Callable[[], str]) -> None:
    """Look again and again.

    Raises:
        TimeoutError: it does not hold in time.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise()}, after {within_s:g} s")
        time.sleep(0.2)
