"""One rank of an engine group, as mpiexec starts it. Rank 0 runs the engine and speaks with the stage; others follow.

``python -m tandem.parallel.rank --worker NAME --endpoint ipc://PATH``. The deployment comes in the environment: other
hosts have no copy of the file. A rank that ends, in good order or not, says so and waits: the supervisor ends the group
as a whole.
"""

from __future__ import annotations

import argparse
import base64
import faulthandler
import logging
import os
import sys
import threading
import time

import msgspec

from tandem.deployment import Deployment, Worker, to_json
from tandem.engines.registry import find_follower
from tandem.engines.server import build_engine, run_engine
from tandem.errors import TandemError
from tandem.logs import start_logging
from tandem.parallel import guard, heartbeat
from tandem.parallel.network import use_network
from tandem.parallel.shared_memory import forget_names

log = logging.getLogger(__name__)

DEPLOYMENT = "TANDEM_DEPLOYMENT"
"""Environment variable: the deployment as JSON, in base64, which every launcher passes on unharmed."""
LINGER_S = 3.0
"""How long a rank that is at its end waits to be ended: MPI takes the job along with one that leaves."""


def build_program(
    deployment: Deployment, worker: Worker, endpoint: str, engine: str | None, python: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command of every rank, and what has to be in its environment."""
    command = [python or sys.executable, "-m", "tandem.parallel.rank", "--worker", worker.name, "--endpoint", endpoint]
    if engine is not None:
        command += ["--engine", engine]
    return command, {DEPLOYMENT: base64.b64encode(to_json(deployment)).decode()}


def main(arguments: list[str] | None = None) -> None:
    """Run one rank until it has to end. Does not return."""
    parser = argparse.ArgumentParser(prog="python -m tandem.parallel.rank")
    parser.add_argument("--worker", required=True, help="name of the worker in the deployment")
    parser.add_argument("--endpoint", required=True, help="ipc:// address of the stage, which is rank 0's")
    parser.add_argument("--engine", help="engine name or module:function, in place of the deployment's")
    args = parser.parse_args(arguments)
    deployment = msgspec.json.decode(base64.b64decode(os.environ[DEPLOYMENT]), type=Deployment)
    heartbeat.start(guard.split(deployment.parallel.hang_timeout_s))
    faulthandler.enable()
    start_logging(deployment.logging, worker=args.worker)
    threading.excepthook = _fail_with_thread
    problem = _run(args, deployment)
    if problem is None:
        heartbeat.stopped()
    else:
        log.error("%s", problem)
        heartbeat.failed(problem)
    time.sleep(LINGER_S)
    os._exit(0 if problem is None else 1)


def _run(args: argparse.Namespace, deployment: Deployment) -> str | None:
    """Do this rank's part; what failed, None in good order."""
    try:
        worker = deployment.find_worker(args.worker)
        use_network(deployment)
        from tandem.parallel.group import RankGroup  # MPI starts here, in the network just chosen

        group = RankGroup.join(worker.partition)
        assert group.comm is not None
        forget_names(group.comm)
        if group.rank == 0:
            return run_engine(
                lambda loading: build_engine(deployment, worker, args.engine, loading), args.endpoint, threading.Event()
            )
        find_follower(args.engine or worker.engine)(deployment, worker, group)
    except TandemError as error:
        return error.message
    except Exception as error:
        log.exception("this rank failed")
        return f"{type(error).__name__}: {error}"
    return None


def _fail_with_thread(args: threading.ExceptHookArgs) -> None:
    """A rank of which one thread died is not a rank."""
    name = args.thread.name if args.thread else "?"
    log.error("thread %s died", name, exc_info=args.exc_value)
    heartbeat.failed(f"thread {name} died: {args.exc_type.__name__}: {args.exc_value}")


if __name__ == "__main__":
    main()
