"""What `tandem secrets` makes, used for what it is for: TLS by both ends, the metrics' door, ssh."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import msgspec
import pytest

from tandem.deployment import Server, Tls
from tandem.errors import TandemError
from tandem.keys import MAX_KEYS, load_keys
from tandem.secret_files import RANK_ALIAS, ROLES, make_secrets, rotate_handle_key
from tandem.tls import server_context
from tandem.triton.metrics_door import MetricsDoor
from tandem.triton.ports import choose_ports

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets")
    assert make_secrets(directory)
    return directory


def tls_of(directory: Path, role: str) -> Tls:
    place = directory / role
    return Tls(ca=str(place / "ca.pem"), certificate=str(place / "certificate.pem"), key=str(place / "key.pem"))


def client_context(trusted: Path, shown: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusted / "ca.pem"))
    if shown is not None:
        context.load_cert_chain(shown / "certificate.pem", shown / "key.pem")
    return context


def test_only_the_owner_may_read_them_and_they_are_not_made_twice(directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.name for path in directory.iterdir()} == {"ca", *ROLES}
    before = {path: path.read_bytes() for path in files}
    assert not make_secrets(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_host_that_has_its_part_makes_no_other(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "worker", tmp_path / "worker")
    assert not make_secrets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["worker"]


def test_gateway_and_worker_have_one_key_which_changes_for_both(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    files = [tmp_path / role / "handle_key" for role in ("worker", "gateway")]
    (first,) = files[0].read_text().split()
    for number in range(1, MAX_KEYS + 1):
        assert rotate_handle_key(tmp_path) == files
        contents = [file.read_text().split() for file in files]
        assert contents[0] == contents[1]
        assert (first in contents[0]) == (number < MAX_KEYS)
    assert load_keys({"TANDEM_HANDLE_KEY_FILE": str(files[0])}).signing == bytes.fromhex(contents[0][1])


def test_there_must_be_a_key_to_change(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="holds no handle_key"):
        rotate_handle_key(tmp_path)


def test_a_missing_file_is_named(directory: Path) -> None:
    with pytest.raises(TandemError, match=r"tls\.key: '/nowhere' cannot be read"):
        server_context(msgspec.structs.replace(tls_of(directory, "worker"), key="/nowhere"))


class Metrics(http.server.BaseHTTPRequestHandler):
    """Has a page, as Triton does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"metric 1\n" * 10_000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def door(directory: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = choose_ports(Server(http_port=0, grpc_port=0, metrics_port=0)).metrics
    door = MetricsDoor(tls_of(directory, "worker"), "127.0.0.1", port, server.server_port)
    yield f"https://127.0.0.1:{port}/metrics"
    door.close()
    server.shutdown()
    server.server_close()


def test_metrics_are_for_those_with_a_certificate(directory: Path, door: str, tmp_path: Path) -> None:
    make_secrets(tmp_path)  # a stranger's
    trusted = directory / "watch"
    with urllib.request.urlopen(door, timeout=TIMEOUT_S, context=client_context(trusted, trusted)) as answer:
        assert answer.read() == b"metric 1\n" * 10_000
    for shown in (None, tmp_path / "watch"):
        with pytest.raises(OSError):  # noqa: PT011  # as TLS ends it: reset, closed or refused
            urllib.request.urlopen(door, timeout=TIMEOUT_S, context=client_context(trusted, shown)).read()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(door, timeout=TIMEOUT_S, context=client_context(tmp_path / "watch", trusted))


async def enter(server: Path, key: Path, known_hosts: Path) -> str:
    """Who the sshd of ``server`` takes the client to be."""

    def answer(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(process.get_extra_info("username"))
        process.exit(0)

    async with (
        asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[server / "host_key"],
            authorized_client_keys=str(server / "authorized_keys"),
            process_factory=answer,
        ) as door,
        asyncssh.connect(
            "127.0.0.1",
            door.get_port(),
            username="tandem",
            client_keys=[key],
            known_hosts=str(known_hosts),
            host_key_alias=RANK_ALIAS,
            config=None,
            agent_path=None,
        ) as client,
    ):
        done = await client.run("true", check=True)
        return str(done.stdout)


def test_ssh_takes_the_keys_and_no_others(directory: Path, tmp_path: Path) -> None:
    make_secrets(tmp_path)  # a stranger's
    own, other = directory / "worker/ssh", tmp_path / "worker/ssh"

    def try_to_enter(key: Path, known_hosts: Path) -> str:
        return asyncio.run(asyncio.wait_for(enter(own, key / "key", known_hosts / "known_hosts"), TIMEOUT_S))

    assert try_to_enter(own, own) == "tandem"
    with pytest.raises(asyncssh.PermissionDenied):
        try_to_enter(other, own)
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        try_to_enter(own, other)
