"""Ports for the server: those asked for, checked before anything is loaded, or free ones."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

from tandem.deployment import Server
from tandem.errors import TandemError

_FREE_RANGE = range(20_000, 32_000)
"""Below Linux's ephemeral ports: no outgoing connection takes one while the models load."""


@dataclass(frozen=True)
class Ports:
    """Where one server listens."""

    http: int
    grpc: int
    metrics: int


def choose_ports(server: Server) -> Ports:
    """The ports of ``[server]``, each 0 replaced by a free one.

    Raises:
        TandemError: ``environment``, naming a port that is taken and the option that changes it.
    """
    chosen: dict[str, int] = {}
    for name, port in (("http", server.http_port), ("grpc", server.grpc_port), ("metrics", server.metrics_port)):
        if port == 0:
            chosen[name] = free_port(server.host, frozenset(chosen.values()))
            continue
        if port in chosen.values():
            raise TandemError(
                "environment", f"{name}_port: {port} is given twice; choose another, e.g. --{name}-port {port + 1}"
            )
        if problem := _why_taken(server.host, port):
            raise TandemError(
                "environment",
                f"{name}_port: cannot listen on {server.host}:{port} ({problem}); "
                f"choose another with --{name}-port, or 0 for a free one",
            )
        chosen[name] = port
    return Ports(**chosen)


def free_port(host: str, taken: frozenset[int] = frozenset()) -> int:
    """One that nobody listens on.

    Raises:
        TandemError: ``environment``: there is none.
    """
    for port in random.sample(_FREE_RANGE, k=200):
        if port not in taken and _why_taken(host, port) is None:
            return port
    raise TandemError("environment", f"no free port between {_FREE_RANGE.start} and {_FREE_RANGE.stop} on {host}")


def _why_taken(host: str, port: int) -> str | None:
    """None when the port can be listened on, otherwise the system's reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None
