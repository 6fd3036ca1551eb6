"""The health checks of docker-compose.yml, against a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.cli.client import Client
from tandem.messages import Hello, HelloReply
from tandem.triton.ports import choose_ports
from tandem.triton.server import TritonServer
from tests.integration.test_cancellation import assert_nothing_left

SCRIPT = Path(__file__).parents[2] / "build/docker/healthcheck.py"


@pytest.fixture
def key_file(handle_key: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "handle_key"
    file.write_text(handle_key.hex())
    return file


def check(model: str, port: int, key_file: Path) -> int:
    """Its exit status, with a server expected at ``port``."""
    command = [sys.executable, str(SCRIPT), model, f"http://127.0.0.1:{port}"]
    environment = {"TANDEM_HANDLE_KEY_FILE": str(key_file)}
    return subprocess.run(command, timeout=60, check=False, capture_output=True, env=environment).returncode


def bytes_pulled(server: TritonServer) -> int:
    """KV that decode has read from prefill so far."""
    with Client(server.grpc_url) as client:
        reply = client.call("decode_0", Hello())
    assert isinstance(reply, HelloReply)
    return reply.load.bytes_pulled


def test_check_goes_through_prefill_and_decode(server: TritonServer, key_file: Path) -> None:
    before = bytes_pulled(server)
    assert check("llm", server.ports.http, key_file) == 0
    deadline = time.monotonic() + 30
    while bytes_pulled(server) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert bytes_pulled(server) > before


@pytest.mark.parametrize("worker", ["prefill_0", "decode_0"])
def test_check_of_a_worker_leaves_nothing_behind(server: TritonServer, key_file: Path, worker: str) -> None:
    assert check(worker, server.ports.http, key_file) == 0
    assert_nothing_left(server)


def test_check_fails_where_no_server_answers(server: TritonServer, key_file: Path) -> None:
    free = choose_ports(server.deployment.server).http
    assert check("llm", free, key_file) != 0
