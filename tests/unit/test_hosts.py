"""Hosts made of namespaces: apart from each other save for their links, and gone without a trace."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.hosts import Hosts, make_hosts

DEADLINE_S = 30.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with make_hosts(2) as hosts:
        yield hosts


def connects(hosts: Hosts, source: int, target: int) -> bool:
    """Whether one host reaches another, tried once."""
    code = f"import socket; socket.create_connection(('{hosts[target].address}', 22), 1)"
    return hosts[source].run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_is_a_world_of_its_own(hosts: Hosts) -> None:
    def say(index: int, command: str) -> str:
        return hosts[index].run(["sh", "-c", command]).stdout

    assert [say(i, "hostname").strip() for i in range(2)] == ["host1", "host2"]
    assert say(0, "cat /proc/sys/kernel/random/boot_id") != say(1, "cat /proc/sys/kernel/random/boot_id")
    for kind in ("net", "pid", "ipc", "uts", "mnt"):
        assert len({say(0, f"readlink /proc/self/ns/{kind}"), say(1, f"readlink /proc/self/ns/{kind}")}) == 2
    say(0, "echo secret > /dev/shm/note")
    assert hosts[0].shared_memory() == ["note"]
    assert hosts[1].shared_memory() == []
    assert say(1, "ls /dev/shm") == ""
    assert not Path("/dev/shm/note").exists()
    assert int(say(0, "ls -d /proc/[0-9]* | wc -l")) < 10


def test_a_command_has_its_callers_environment_and_directory(hosts: Hosts, tmp_path: Path) -> None:
    said = hosts[0].run(["sh", "-c", "echo $WORD; pwd; cat"], env={**os.environ, "WORD": "a b"}, input="in")
    assert said.stdout == f"a b\n{Path.cwd()}\nin"
    (tmp_path / "file").write_text("shared")
    assert hosts[1].run(["cat", str(tmp_path / "file")]).stdout == "shared"


def test_the_agent_is_like_ssh(hosts: Hosts) -> None:
    """Called inside of one host, as mpiexec does."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return hosts[0].run(
            [str(hosts.agent), *words], check=False, env={**os.environ, "WORD": "kept back"}, input="in"
        )

    done = call("-x", "-o", "BatchMode=yes", hosts[1].address, "hostname;", 'echo "<$WORD>";', "cat; exit 7")
    assert (done.stdout, done.returncode) == ("host2\n<>\nin", 7)
    assert call("host2", "kill -9 $$").returncode == 255
    done = call("10.0.0.1", "true")
    assert (done.returncode, done.stderr) == (255, "agent: no host 10.0.0.1\n")


def test_a_cut_link_lets_nothing_through(hosts: Hosts) -> None:
    assert connects(hosts, 0, 1)
    hosts[1].cut()
    assert not connects(hosts, 0, 1)
    assert not connects(hosts, 1, 0)
    done = hosts[0].run([str(hosts.agent), hosts[1].address, "true"], check=False)
    assert done.returncode == 255
    assert "agent: connect to host" in done.stderr
    hosts[1].mend()
    deadline = time.monotonic() + DEADLINE_S
    while not connects(hosts, 0, 1):
        assert time.monotonic() < deadline


def test_a_bad_link_delays_and_loses(hosts: Hosts) -> None:
    with hosts[1].bad_link(delay_s=0.05, loss=0.0):
        began = time.monotonic()
        assert connects(hosts, 0, 1)
        assert time.monotonic() - began > 2 * 0.05
    with hosts[1].bad_link(delay_s=0.0, loss=1.0):
        assert not connects(hosts, 0, 1)
    assert connects(hosts, 0, 1)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = "ip, unshare, nsenter, mount not found; apt-get install iproute2 util-linux"
    with pytest.raises(RuntimeError, match=missing), make_hosts(1):
        pass


def test_traffic_is_counted(hosts: Hosts) -> None:
    size = 1_000_000
    with socket.create_server((hosts.outside, 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('{hosts.outside}', {port})).sendall(bytes({size}))"
        before = hosts[0].traffic(), hosts[1].traffic()
        sender = hosts[0].popen([sys.executable, "-c", code])
        connection = server.accept()[0]
        while connection.recv(1 << 16):
            pass
        assert sender.wait(DEADLINE_S) == 0
    after = hosts[0].traffic(), hosts[1].traffic()
    assert size < after[0][1] - before[0][1] < 1.2 * size
    assert after[1][1] - before[1][1] < size / 10


@pytest.mark.parametrize("end", ["exception", "kill"])
def test_nothing_is_left(end: str) -> None:
    """However whoever made them ends, and whatever runs there."""
    code = (
        "import time\nfrom tests.hosts import make_hosts\nwith make_hosts(2) as hosts:\n"
        "    hosts[0].popen(['setsid', 'sleep', '600'])\n"
        "    hosts[0].run([str(hosts.agent), 'host2', 'setsid sleep 600 > /dev/null 2>&1 &'])\n"
        "    processes = [p.pid for host in hosts.hosts for p in host.processes()]\n"
        "    print(*processes, *[host.pid for host in hosts.hosts], flush=True)\n"
        "    input()\n    raise SystemError\n"
    )
    before = links()
    maker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert maker.stdout is not None
    everything = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
    assert sum("sleep" in process.name() for process in everything) == 2
    assert len(links() - before) == 1
    if end == "kill":
        maker.send_signal(signal.SIGKILL)
    maker.communicate("\n", timeout=DEADLINE_S)
    assert psutil.wait_procs(everything, DEADLINE_S)[1] == []
    deadline = time.monotonic() + DEADLINE_S
    while links() != before:
        assert time.monotonic() < deadline


def links() -> set[str]:
    """Network interfaces of this machine that belong to hosts."""
    return {path.name for path in Path("/sys/class/net").iterdir() if re.fullmatch(r"td[0-9a-f]{8}", path.name)}
