"""The launch agent, in place of ssh: ``AGENT [OPTIONS] HOST COMMAND...`` runs the command on one of the hosts.

Like ssh it needs the link to get there, leaves the environment behind, gives the words to a shell, and answers 255
where it fails itself. Unlike ssh it hands its own files on to the command: what that writes does not need the link.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from init import PORT

CONNECT_TIMEOUT_S = 3.0
VALUED = "bcDEeFIiJLlmOopQRSWw"
"""Options of ssh that take a value."""
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def main(directory: str, *words: str) -> int:
    left = list(words)
    while left and left[0].startswith("-"):
        option = left.pop(0)
        if len(option) == 2 and option[1] in VALUED:
            left.pop(0)
    host, *command = left
    places = json.loads(Path(directory, "hosts.json").read_text())
    if host not in places:
        print(f"agent: no host {host}", file=sys.stderr)
        return 255
    address, path = places[host]
    try:
        socket.create_connection((address, PORT), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        print(f"agent: connect to host {host}: {error}", file=sys.stderr)
        return 255
    environment = {"HOME": "/root", "USER": "root", "SHELL": "/bin/sh", "PATH": PATH, "TMPDIR": "/dev/shm/.tmp"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(path)
        socket.send_fds(door, [json.dumps([" ".join(command), environment]).encode()], [0, 1, 2])
        answer = door.recv(16)
    return int(answer) if answer else 255


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
