"""A watcher that outlives ``tandem``: should that be killed, the guard ends the Triton server it left behind.

``python -m tandem.triton.guard RUN_ID``; its standard input is a pipe whose other end only ``tandem`` holds, so
it closes however that process ends.
"""

from __future__ import annotations

import signal
import sys

from tandem.triton.processes import end_run

_GRACE_S = 15.0


def main(run_id: str) -> int:
    """Wait for the end of the owner, then end the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_run(run_id, _GRACE_S)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
