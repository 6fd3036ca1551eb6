"""A real deployment for tests that speak with it as clients do."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tandem.deployment import Deployment, load_deployment, override
from tandem.triton.server import TritonServer

LOCAL = Path(__file__).parents[2] / "deployments" / "local.toml"


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    """``deployments/local.toml`` on free ports, with KV memory for 11,000 tokens in float32: several such servers may
    run at once. Requests are always taken apart there."""
    plain = override(load_deployment(LOCAL), http_port=0, grpc_port=0, metrics_port=0)
    return msgspec.structs.replace(
        plain, worker=[msgspec.structs.replace(worker, kv_memory="512MiB") for worker in plain.worker]
    )


@pytest.fixture(scope="session", autouse=True)
def handle_key() -> bytes:
    """The deployment's handle key, chosen here so that tests can sign handles too."""
    key = secrets.token_bytes(32)
    os.environ["TANDEM_HANDLE_KEY"] = key.hex()
    return key


@pytest.fixture(scope="session")
def server(deployment: Deployment) -> Iterator[TritonServer]:
    """One server for all tests of the session; ``server.http_url``, ``.grpc_url``, ``.metrics_url``, ``.ports``."""
    with TritonServer(deployment) as running:
        yield running
