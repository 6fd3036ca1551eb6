"""Choosing ports."""

import socket

import pytest

from tandem.deployment import Server
from tandem.errors import TandemError
from tandem.triton.ports import choose_ports


def test_zero_picks_three_different_free_ports() -> None:
    ports = choose_ports(Server(http_port=0, grpc_port=0, metrics_port=0))
    chosen = [ports.http, ports.grpc, ports.metrics]
    assert len(set(chosen)) == 3
    for port in chosen:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_given_ports_are_kept() -> None:
    free = choose_ports(Server(http_port=0, grpc_port=0, metrics_port=0))
    assert choose_ports(Server(http_port=free.http, grpc_port=free.grpc, metrics_port=free.metrics)) == free


@pytest.mark.parametrize("field", ["http", "grpc", "metrics"])
def test_taken_port_is_named_with_its_option(field: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        wanted = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, f"{field}_port": taken}
        with pytest.raises(TandemError, match=rf"{field}_port: .*:{taken} \(Address already in use\).*--{field}-port"):
            choose_ports(Server(**wanted))


def test_port_given_twice_is_refused() -> None:
    free = choose_ports(Server(http_port=0, grpc_port=0, metrics_port=0)).http
    with pytest.raises(TandemError, match=f"grpc_port: {free} is given twice"):
        choose_ports(Server(http_port=free, grpc_port=free, metrics_port=0))


def test_foreign_address_is_refused() -> None:
    with pytest.raises(TandemError, match=r"cannot listen on 192\.0\.2\.1:"):
        choose_ports(Server(host="192.0.2.1", http_port=18000))
