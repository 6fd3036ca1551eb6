"""A small deployment and two tiny models behind it, for tests of the server itself."""

from pathlib import Path

import pytest

from tandem.deployment import Deployment, Model, Server, Worker


@pytest.fixture
def templates() -> Path:
    return Path(__file__).parent / "templates"


@pytest.fixture
def deployment() -> Deployment:
    return Deployment(
        name="probe",
        model=Model(path="/nonexistent"),
        worker=[Worker(name="prefill_0", stage="prefill"), Worker(name="decode_0", stage="decode")],
        server=Server(http_port=0, grpc_port=0, metrics_port=0),
    )
