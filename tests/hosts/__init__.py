"""Several hosts on one machine: namespaces on a bridge, so that groups over many hosts can be tested on one.

Each host has its own network, processes, IPC objects, host name, /proc, /dev/shm and boot id: what passes between two
of them goes over their links, which can be cut. They share the file system and the clock. Needs root.

All is held by processes that end with the one that made the hosts, however that ends; with them go namespaces, links
and whatever still runs inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.hosts.init import PORT

TIMEOUT_S = 30.0
TOOLS = ("ip", "unshare", "nsenter", "mount")

_HERE = Path(__file__).parent
_PYTHON = [sys.executable, "-I", "-S"]
_ISOLATE = ["unshare", "--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "--kill-child"]
_SET_UP = """
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mkdir /dev/shm/.tmp
cat /proc/sys/kernel/random/uuid > /dev/shm/.boot_id
mount --bind /dev/shm/.boot_id /proc/sys/kernel/random/boot_id
echo "$1" > /proc/sys/kernel/hostname
ip link set lo up
shift
exec "$@"
"""


@dataclass(frozen=True, eq=False)
class Host:
    """One host."""

    name: str
    address: str
    pid: int
    """Of its first process, as counted outside."""
    _switch: int
    _port: str
    _network: list[int]
    """First processes of all hosts."""

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` in this host, in the current directory, with the caller's environment."""
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd()), *command]
        return ["nsenter", "-t", str(self.pid), "-n", "-p", "-i", "-u", "-m", *inside]

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in this host and wait for it; ``options`` are those of ``subprocess.run``."""
        options = {"capture_output": True, "text": True, "timeout": TIMEOUT_S, "check": True, **options}
        return subprocess.run(self.enter(command), **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in this host. ``options`` are those of ``Popen``."""
        return subprocess.Popen(self.enter(command), **{"text": True, **options})

    def cut(self) -> None:
        """Pull the cable."""
        _ip(self._switch, f"link set {self._port} down")

    def mend(self) -> None:
        """Plug it in again, and wait for it to work."""
        _ip(self._switch, f"link set {self._port} up")
        deadline = time.monotonic() + TIMEOUT_S
        while not self.is_reachable():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} cannot be reached {TIMEOUT_S:g} s after its link was mended")
            time.sleep(0.05)
        for pid in self._network:  # that another host could not be found is remembered for a while
            _ip(pid, "neigh flush all")

    @contextlib.contextmanager
    def bad_link(self, delay_s: float, loss: float, seed: int = 1) -> Iterator[None]:
        """Until the block ends, all that passes the link is late by ``delay_s``, and this share of it is lost."""
        bad = f"bad{self._port}"
        _plug(self._switch, self._switch, f"{bad}x", bad)
        try:
            _ip(self._switch, f"link set {self._port} nomaster")
            wire = [*_PYTHON, str(_HERE / "wire.py"), self._port, bad, str(delay_s), str(loss), str(seed)]
            with _hold(["nsenter", "-t", str(self._switch), "-n", *wire]):
                yield
        finally:
            _ip(self._switch, f"link del {bad}", f"link set {self._port} master bridge")

    def is_reachable(self) -> bool:
        """Whether the machine itself can connect to this host."""
        try:
            socket.create_connection((self.address, PORT), 1.0).close()
        except OSError:
            return False
        return True

    def traffic(self) -> tuple[int, int]:
        """Bytes that this host has received and sent over its link."""
        (link,) = json.loads(_ip(self.pid, "-s -j link show eth0"))
        return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]

    def shared_memory(self) -> list[str]:
        """Names of what is in /dev/shm here, files and directories at any depth. What the hosts need is left out."""
        root = Path(f"/proc/{self.pid}/root/dev/shm")
        return sorted(path.name for path in root.rglob("*") if path.name not in (".boot_id", ".tmp"))

    def processes(self) -> list[psutil.Process]:
        """What runs here, save for the first process."""
        here = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if pid != self.pid and Path(f"/proc/{pid}/ns/pid").readlink() == here:
                    found.append(psutil.Process(pid))
        return found


@dataclass(frozen=True)
class Hosts:
    """All of them."""

    hosts: list[Host]
    subnet: str
    agent: Path
    """The launch agent; it works inside of the hosts, too."""
    outside: str
    """Address of the machine itself on their bridge."""

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def addresses(self, *indexes: int) -> list[str]:
        """Addresses of some hosts."""
        return [self.hosts[index].address for index in indexes]


def find_obstacle() -> str | None:
    """Why hosts cannot be made here."""
    if os.geteuid() != 0:
        return "hosts are made of namespaces, which needs root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found; apt-get install iproute2 util-linux"
    return None


@contextlib.contextmanager
def make_hosts(count: int) -> Iterator[Hosts]:
    """Make ``count`` hosts, and take them down with all that runs there.

    Raises:
        RuntimeError: they cannot be made here.
    """
    if (obstacle := find_obstacle()) is not None:
        raise RuntimeError(obstacle)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-hosts-")))
        switch = stack.enter_context(_hold(["unshare", "--net", "sh", "-c", "echo ready; exec cat > /dev/null"])).pid
        _ip(switch, "link add bridge type bridge", "link set bridge up")
        network = _choose_network()
        cable = f"td{secrets.token_hex(4)}"
        _plug(os.getpid(), switch, "port0", cable, f"{network}.254")
        stack.callback(_ip, os.getpid(), f"link del {cable}")  # with the switch it would go a little later
        hosts: list[Host] = []
        pids: list[int] = []
        for number in range(1, count + 1):
            name = f"host{number}"
            init = [*_PYTHON, str(_HERE / "init.py"), str(directory / name)]
            holder = stack.enter_context(_hold([*_ISOLATE, "sh", "-c", _SET_UP, "sh", name, *init]))
            pid = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
            hosts.append(Host(name, f"{network}.{number}", pid, switch, f"port{number}", pids))
            pids.append(pid)
            _plug(pid, switch, hosts[-1]._port, "eth0", hosts[-1].address)
        yield Hosts(hosts, f"{network}.0/24", _write_agent(directory, hosts), f"{network}.254")


@contextlib.contextmanager
def _hold(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready and ends when its stdin does: with the block, or with this process."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"namespaces cannot be made here: {shlex.join(command[:4])} … failed")
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _plug(pid: int, switch: int, port: str, name: str, address: str | None = None) -> None:
    """Lay a cable from ``port`` of the switch to the network namespace of process ``pid``."""
    _ip(switch, f"link add {port} type veth peer name {name} netns {pid}", f"link set {port} master bridge up")
    if address is not None:
        _ip(pid, f"addr add {address}/24 dev {name}")
    _ip(pid, f"link set {name} up")


def _choose_network() -> str:
    """The first three numbers of a network that is not in use."""
    used = {route["dst"].rsplit(".", 1)[0] for route in json.loads(_ip(os.getpid(), "-4 -j route show table all"))}
    while (network := f"10.{random.randint(64, 250)}.{random.randint(0, 255)}") in used:
        pass
    return network


def _ip(pid: int, *commands: str) -> str:
    """Run ``ip`` in the network namespace of a process; what the last command said."""
    for command in commands:
        call = ["nsenter", "-t", str(pid), "-n", "ip", *command.split()]
        done = subprocess.run(call, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise RuntimeError(f"ip {command}: {done.stderr.strip()}")
    return done.stdout


def _write_agent(directory: Path, hosts: list[Host]) -> Path:
    places = {name: (host.address, str(directory / host.name)) for host in hosts for name in (host.name, host.address)}
    (directory / "hosts.json").write_text(json.dumps(places))
    agent = directory / "agent"
    command = shlex.join([sys.executable, "-S", str(_HERE / "agent.py"), str(directory)])
    agent.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    agent.chmod(0o755)
    return agent
