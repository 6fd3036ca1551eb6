"""The process that manages a TensorRT-LLM engine: beside rank 0, which ``trtllm-llmapi-launch`` has started it from.

``python -m tandem.parallel.llmapi_leader --worker NAME --endpoint ipc://PATH``. It is to its group what rank 0 is to
one of the torch engine's: it builds the engine, speaks with the stage, and tells the supervisor how it is. The other
ranks are TensorRT-LLM's own; when one of them dies, MPI ends them all.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time

from tandem.engines.server import build_engine, run_engine
from tandem.logs import start_logging
from tandem.parallel import guard, heartbeat
from tandem.parallel.llmapi import parse_arguments
from tandem.parallel.rank import LINGER_S


def main(arguments: list[str] | None = None) -> None:
    """Run the process until it has to end. Does not return."""
    args, deployment = parse_arguments("tandem.parallel.llmapi_leader", arguments)
    heartbeat.start(guard.split(deployment.parallel.hang_timeout_s))
    threading.Thread(target=_advance, name="advance", daemon=True).start()
    faulthandler.enable()
    start_logging(deployment.logging, worker=args.worker)
    worker = deployment.find_worker(args.worker)
    problem = run_engine(
        lambda loading: build_engine(deployment, worker, args.engine, loading), args.endpoint, threading.Event()
    )
    if problem is None:
        heartbeat.stopped()
    else:
        heartbeat.failed(problem)
    time.sleep(LINGER_S)
    os._exit(0 if problem is None else 1)


def _advance() -> None:
    """TensorRT-LLM's loop is in other processes; whether that gets on, the engine finds out. Here this one is
    watched."""
    while True:
        heartbeat.advance()
        time.sleep(heartbeat.PERIOD_S)


if __name__ == "__main__":
    main()
