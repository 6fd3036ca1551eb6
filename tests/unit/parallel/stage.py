"""The stage's end of an engine group, as a process of its own: it may run on another host, and may be killed.

Reads request ids on stdin; writes lines of JSON on stdout: ``{"pid": …}`` of the supervisor, ``{"report": …}``,
``{"exit": reason}``. At the end of stdin it stops the group.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import msgspec

from tandem.engines.client import EngineProcess
from tandem.messages import EngineReport, Prefill, Sampling, Start, Stopping

STOP_TIMEOUT_S = 30.0


def say(what: str, content: object) -> None:
    print(json.dumps({what: content}), flush=True)


def main(deployment: str, log_file: str, engine: str) -> None:
    ended = threading.Event()

    def on_report(report: EngineReport) -> None:
        say("report", msgspec.to_builtins(report, builtin_types=(bytes,)))

    def on_exit(reason: str) -> None:
        say("exit", reason)
        ended.set()

    process = EngineProcess(
        Path(deployment),
        "prefill_0",
        Path(log_file),
        on_report=on_report,
        on_exit=on_exit,
        engine=engine,
    )
    process.start()
    say("pid", process.pid)
    for line in sys.stdin:
        one = Prefill(request_id=line.strip(), token_ids=[1], sampling=Sampling(), stopping=Stopping(max_tokens=1))
        process.send(Start(work=[one]))
    process.stop(STOP_TIMEOUT_S)
    ended.wait(STOP_TIMEOUT_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
