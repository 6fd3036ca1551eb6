"""Workers behind mutual TLS: the gateway gets in, and a key that changes meanwhile; who has no certificate does not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from tandem.deployment import Deployment, Tls, load_deployment, override, to_json
from tandem.errors import TandemError
from tandem.keys import Keys, access_word
from tandem.lanes.grpc import GrpcTransport
from tandem.messages import Hello, HelloReply
from tandem.secret_files import make_secrets, rotate_handle_key
from tandem.triton.ports import choose_ports
from tandem.triton.server import TritonServer
from tests.integration.clients import ask_now, post

SIM = Path(__file__).parents[2] / "deployments" / "sim.toml"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Secrets; the environment names their handle key."""
    directory = tmp_path_factory.mktemp("secrets")
    make_secrets(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HANDLE_KEY_FILE", str(directory / "worker/handle_key"))
        yield directory


def tls_of(directory: Path, role: str) -> Tls:
    place = directory / role
    return Tls(ca=str(place / "ca.pem"), certificate=str(place / "certificate.pem"), key=str(place / "key.pem"))


@pytest.fixture(scope="module")
def deployment(directory: Path) -> Deployment:
    """``deployments/sim.toml`` with both workers on one further server, and private."""
    plain = load_deployment(SIM)
    ports = choose_ports(override(plain, http_port=0, grpc_port=0, metrics_port=0).server)
    address = f"localhost:{ports.grpc}"
    workers = [msgspec.structs.replace(w, timing={"start_s": 0.0}, address=address) for w in plain.worker]
    server = msgspec.structs.replace(
        plain.server, http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics, private_stages=True
    )
    tls = tls_of(directory, "worker")
    routing = msgspec.structs.replace(plain.routing, conditional_disaggregation=False)
    return msgspec.structs.replace(plain, worker=workers, server=server, tls=tls, routing=routing)


@pytest.fixture(scope="module")
def workers(deployment: Deployment) -> Iterator[TritonServer]:
    with TritonServer(override(deployment, only=["prefill_0", "decode_0"])) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(deployment: Deployment, directory: Path, workers: TritonServer) -> Iterator[TritonServer]:  # noqa: ARG001
    own = msgspec.structs.replace(deployment, name="gateway", tls=tls_of(directory, "gateway"))
    with TritonServer(override(own, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


def ask(gateway: TritonServer) -> None:
    answer = ask_now(gateway.grpc_url, "llm", {"input_ids": [1, 2, 3], "max_tokens": 5, "ignore_eos": True})
    assert answer.error is None
    assert len(answer.output_ids) == 5
    assert answer.facts["kv_bytes"] > 0


def test_requests_pass_and_go_on_while_the_handle_key_changes(gateway: TritonServer, directory: Path) -> None:
    ask(gateway)
    for _ in range(2):
        rotate_handle_key(directory)
        ask(gateway)


def test_status_shows_hidden_workers(gateway: TritonServer, tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_bytes(to_json(gateway.deployment))
    command = [str(Path(sys.executable).parent / "tandem"), "status", str(file), "--url", gateway.grpc_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert [line.split()[0].partition("@")[0] for line in done.stdout.splitlines() if "@" in line] == [
        "prefill_0",
        "decode_0",
    ]


def test_who_has_no_certificate_of_the_deployment_is_not_let_in(
    workers: TritonServer, directory: Path, tmp_path: Path
) -> None:
    make_secrets(tmp_path)  # a stranger's
    with pytest.raises(InferenceServerException):
        grpc_client.InferenceServerClient(workers.grpc_url).is_server_live(client_timeout=5.0)
    key = Keys([bytes.fromhex((directory / "worker/handle_key").read_text().split()[0])])
    mixed = msgspec.structs.replace(tls_of(tmp_path, "worker"), ca=str(directory / "ca/ca.pem"))
    for tls in (None, tls_of(tmp_path, "worker"), mixed):
        transport = GrpcTransport("decode_0", workers.grpc_url, "decode_0", key, tls)
        with pytest.raises(TandemError) as error:
            transport.call(Hello())
        assert error.value.code == "worker_lost"
        transport.close()


def test_a_certificate_without_the_key_opens_no_stage(workers: TritonServer, directory: Path) -> None:
    tls = tls_of(directory, "gateway")
    stranger = GrpcTransport("decode_0", workers.grpc_url, "decode_0", Keys([bytes(32)]), tls)
    with pytest.raises(TandemError, match=r"\[forbidden\]"):
        stranger.call(Hello())
    stranger.close()
    deadline = time.monotonic() + DEADLINE_S
    known = [bytes.fromhex(word) for word in (directory / "worker/handle_key").read_text().split()]
    friend = GrpcTransport("decode_0", workers.grpc_url, "decode_0", Keys(known), tls)
    while not isinstance(friend.call(Hello()), HelloReply):
        assert time.monotonic() < deadline
    friend.close()


def test_plain_clients_are_refused_by_a_private_stage(workers: TritonServer, directory: Path) -> None:
    url = f"{workers.http_url}/v2/models/decode_0/generate"
    assert url.startswith("http://127.0.0.1:"), "HTTP knows no TLS"
    body = {"input_ids": [1], "max_tokens": 1}
    key = bytes.fromhex((directory / "worker/handle_key").read_text().split()[-1])
    for access, expected in ((None, 400), (access_word(bytes(32)), 400), (access_word(key), 200)):
        status, text = post(url, body if access is None else body | {"access": access})
        assert status == expected, text
        assert ("[forbidden]" in text) == (expected == 400)
