"""The first process of a host: reaps what others leave behind, and starts commands for the agent, as sshd does.

``python init.py SOCKET``; ends, and the host with it, at the end of its stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys

PORT = 22
MAX_BYTES = 1 << 20


def main(path: str) -> None:
    selector = selectors.DefaultSelector()
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(path)
    door.listen()
    link = socket.create_server(("", PORT))  # whoever cannot reach this cannot reach the host
    waiting: dict[int, socket.socket] = {}
    for source in (sys.stdin.fileno(), woken, door, link):
        selector.register(source, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj == sys.stdin.fileno():
                return
            if key.fileobj is door:
                caller = door.accept()[0]
                waiting[start(caller)] = caller
            elif key.fileobj is link:
                link.accept()[0].close()
            else:
                os.read(woken, 4096)
                reap(waiting)


def start(caller: socket.socket) -> int:
    """Start the command that the caller asks for, on the files that it passes along; the process's id."""
    data, files, _, _ = socket.recv_fds(caller, MAX_BYTES, 3)
    command, environment = json.loads(data)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        signal.set_wakeup_fd(-1)
        os.closerange(3, 1000)
        os.execve("/bin/sh", ["sh", "-c", command], environment)
    for file in files:
        os.close(file)
    return pid


def reap(waiting: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if (caller := waiting.pop(pid, None)) is not None:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):  # the caller was killed meanwhile
                caller.send(str(code if code >= 0 else 255).encode())
            caller.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
