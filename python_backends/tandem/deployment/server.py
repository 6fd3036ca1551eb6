"""``[server]`` and ``[tls]``: where Triton listens, what it serves, and to whom."""

from __future__ import annotations

from tandem.deployment.base import Port, Section

GATEWAY = "gateway"
"""As a part of a deployment: the models that clients call."""


class Server(Section, frozen=True, kw_only=True):
    """Where Triton listens. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    only: list[str] = []
    """What of the deployment runs here, ``gateway`` and names of workers; see ``Deployment.parts_here``."""
    private_stages: bool = False
    """Whether stage models refuse plain clients; orchestrators reach them under the handle key in any case."""


class Tls(Section, frozen=True, kw_only=True):
    """Files (PEM) with which gateways and workers show each other who they are, as ``tandem secrets`` makes them;
    relative to the deployment file. Of the gateway's ports only that of the metrics is under it."""

    ca: str
    certificate: str
    key: str
