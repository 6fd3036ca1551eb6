"""Users' load on the whole deployment, measured from outside; its processes are watched on the machine they share."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.compose.machine import ROOT, run
from tests.compose.stack import Stack

NAME = "Docker Compose: gateway, two prefill workers, a decode worker, a decode group of two ranks"
MEASURED_S = 900.0


def measure(stack: Stack, out: Path) -> str:
    """Have ``load_report.py`` write its page and its JSON."""
    pids = [f"--pid={stack.inspect(container)['State']['Pid']}" for container in stack.containers()]
    script = str(ROOT / "loadtest" / "load_report.py")
    server = ["--http-url", stack.http_url, "--grpc-url", stack.grpc_url, "--name", NAME, *pids]
    run(sys.executable, script, *server, "--out", str(out), timeout=MEASURED_S)
    return f"{out} and {out.with_suffix('.json').name}"
