"""Which addresses are this host's, and which of its networks a rank is to use."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from tandem.deployment import Deployment, Worker
from tandem.errors import TandemError

LOOPBACK = "lo"


def check_first_host(worker: Worker) -> None:
    """Whether a group's first host is this machine: its leader talks with the stage through the file system.

    Raises:
        TandemError: ``invalid_request``: it is not.
    """
    first = worker.hosts[0]
    try:
        addresses = {(info[0], str(info[4][0])) for info in socket.getaddrinfo(first, 0, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise TandemError("invalid_request", f"worker.hosts: {first!r} of {worker.name}: {error}") from error
    if not any(map(_is_ours, addresses)):
        raise TandemError(
            "invalid_request",
            f"worker.hosts: {first!r}, the first of {worker.name}, is no address of this machine, which serves it",
        )


def _is_ours(address: tuple[int, str]) -> bool:
    with socket.socket(address[0], socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[1], 0))
        except OSError:
            return False
    return True


def use_network(deployment: Deployment) -> None:
    """Have MPI and NIXL in this process use the deployment's network, and no other: that of ``parallel.subnet``, or
    loopback where all workers are on one machine, so that nothing listens for strangers or goes with an interface.
    Interfaces have another name on each host, so each rank looks for its own. What the environment says already stays.

    Raises:
        TandemError: ``invalid_request``: this host is not in that network.
    """
    subnet = deployment.parallel.subnet
    if subnet is None:
        if deployment.is_spread or any(len(worker.hosts) > 1 for worker in deployment.worker):
            return
        interface = LOOPBACK
    else:
        interface = find_interface(subnet)
    for name in ("UCX_NET_DEVICES", "FI_TCP_IFACE"):
        os.environ.setdefault(name, interface)


def own_address(deployment: Deployment) -> str:
    """Where this host listens for workers elsewhere: its address in ``parallel.subnet``; without one that of its name,
    or loopback where all workers are on this machine.

    Raises:
        TandemError: ``invalid_request``: this host is not in that network, or its name is of no use to others.
    """
    if deployment.parallel.subnet is None:
        if not deployment.is_spread:
            return "127.0.0.1"
        address = socket.gethostbyname(socket.gethostname())
        if ipaddress.ip_address(address).is_loopback:
            what = f"this host's name, {socket.gethostname()}, stands for {address}; say which network workers share"
            raise TandemError("invalid_request", f"parallel.subnet: is missing, and {what}")
        return address
    network = ipaddress.ip_network(deployment.parallel.subnet, strict=False)
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and ipaddress.ip_address(address.address) in network:
                return str(address.address)
    raise TandemError("invalid_request", f"parallel.subnet: {socket.gethostname()} has no IPv4 address in {network}")


def find_interface(subnet: str) -> str:
    """This host's interface in ``subnet``.

    Raises:
        TandemError: ``invalid_request``: it has none.
    """
    network = ipaddress.ip_network(subnet, strict=False)
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                plain = address.address.partition("%")[0]
                if ipaddress.ip_address(plain) in network:
                    return str(name)
    raise TandemError("invalid_request", f"parallel.subnet: {socket.gethostname()} has no address in {subnet}")
