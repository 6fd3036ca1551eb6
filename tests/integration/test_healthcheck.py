"""The health check of docker-compose.yml, against a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import yaml

from tandem.cli.client import Client
from tandem.messages import Hello, HelloReply
from tandem.triton.ports import choose_ports
from tandem.triton.server import TritonServer

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


def check(port: int) -> int:
    """Its exit status, with a server expected at ``port``."""
    kind, python, *arguments = yaml.safe_load(COMPOSE.read_text())["services"]["tandem"]["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python3")
    told = [argument.replace("127.0.0.1:8000/", f"127.0.0.1:{port}/") for argument in arguments]
    assert told != arguments
    return subprocess.run([sys.executable, *told], timeout=60, check=False, capture_output=True).returncode


def bytes_pulled(server: TritonServer) -> int:
    """KV that decode has read from prefill so far."""
    with Client(server.grpc_url) as client:
        reply = client.call("decode_0", Hello())
    assert isinstance(reply, HelloReply)
    return reply.load.bytes_pulled


def test_check_goes_through_prefill_and_decode(server: TritonServer) -> None:
    before = bytes_pulled(server)
    assert check(server.ports.http) == 0
    deadline = time.monotonic() + 30
    while bytes_pulled(server) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert bytes_pulled(server) > before


def test_check_fails_where_no_server_answers(server: TritonServer) -> None:
    free = choose_ports(server.deployment.server).http
    assert check(free) != 0
