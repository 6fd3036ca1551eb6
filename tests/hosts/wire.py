"""A bad cable between two interfaces: what comes in at one goes out at the other, later or not at all.

``python wire.py ONE OTHER DELAY_S LOSS SEED``; ends at the end of its stdin. In place of the kernel's netem, which not
every kernel has. A frame here may be many packets of TCP, which the kernel cuts only where they leave the machine.
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 1, 15, 23
PACKET_MR_PROMISC = 1
FRAME_BYTES = 1 << 17


def open_interface(name: str) -> socket.socket:
    """All frames that come in there, with the header that says what the kernel has left undone of them."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    link.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    link.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    link.bind((name, ETH_P_ALL))
    promiscuous = socket.if_nametoindex(name).to_bytes(4, sys.byteorder) + PACKET_MR_PROMISC.to_bytes(2, sys.byteorder)
    link.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous + bytes(10))
    link.setblocking(False)
    return link


def main(one: str, other: str, delay_s: float, loss: float, seed: int) -> None:
    draw = random.Random(seed)
    links = [open_interface(one), open_interface(other)]
    waiting: deque[tuple[float, bytes, socket.socket]] = deque()
    print("ready", flush=True)
    while True:
        timeout = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        readable, _, _ = select.select([sys.stdin, *links], [], [], timeout)
        if sys.stdin in readable:
            return
        for here, there in (links, reversed(links)):
            if here in readable:
                frame = here.recv(FRAME_BYTES)
                if draw.random() >= loss:
                    waiting.append((time.monotonic() + delay_s, frame, there))
        while waiting and waiting[0][0] <= time.monotonic():
            _, frame, target = waiting.popleft()
            try:
                target.send(frame)
            except OSError:
                continue  # the link is down, or full: lost


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
