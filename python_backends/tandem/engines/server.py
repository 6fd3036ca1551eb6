"""The engine process: builds one worker's engine, and passes commands in and reports out.

``python -m tandem.engines.server --deployment FILE.json --worker NAME --endpoint ipc://PATH --parent-fd N``

Commands are pulled from ``PATH.commands``, which this process binds; reports are pushed to ``PATH.reports``, which the
stage binds (so whoever sends may do so at once). The process ends on Stop, on SIGTERM, when the engine fails, and when
its parent is gone: the parent holds the other end of the pipe ``N``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import msgspec
import zmq

from tandem.deployment import Deployment, Worker, load_deployment
from tandem.engines.base import Engine, LoadingSink
from tandem.engines.registry import find_engine
from tandem.errors import TandemError
from tandem.logs import Logging, start_logging
from tandem.messages import (
    Cancel,
    EngineCommand,
    EngineError,
    EngineEvent,
    EngineReport,
    Events,
    KvEvent,
    Load,
    Loading,
    Pair,
    Ready,
    Start,
    Stop,
    Unpair,
    decoder,
    encode,
)
from tandem.parallel import heartbeat
from tandem.parallel.network import use_network

log = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 0.5
"""Pause between reports when nothing happens; the stage is promised one per second."""
COMMAND_POLL_MS = 200
PARENT_GRACE_S = 5.0
LINGER_MS = 1000


class Reporter:
    """Sends reports from any thread, without waiting, and a sign of life when there is nothing to report."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.connect(endpoint)
        self._lock = threading.Lock()
        self._closed = False
        self._sent = 0.0
        self._idle_report: EngineReport = Loading(what="starting", fraction=0.0)
        threading.Thread(target=self._live, name="sign-of-life", daemon=True).start()

    def loading(self, what: str, fraction: float) -> None:
        """A ``LoadingSink``."""
        self._idle_report = Loading(what=what, fraction=fraction)
        self.send(self._idle_report)

    def events(self, events: list[EngineEvent], load: Load, kv: Sequence[KvEvent] = ()) -> None:
        """An ``EventSink``."""
        self._idle_report = Events(events=[], load=load)
        self.send(Events(events=events, load=load, kv=list(kv)))

    def send(self, report: EngineReport) -> None:
        """Send one report; order is kept."""
        data = encode(report)
        with self._lock:
            if not self._closed:
                self._socket.send(data)
                self._sent = time.monotonic()

    def ready(self, report: Ready) -> None:
        """Send ``Ready``; from now on the sign of life is a load."""
        self._idle_report = Events(events=[], load=Load())
        self.send(report)

    def close(self) -> None:
        """Give what was sent a moment to leave."""
        with self._lock:
            self._closed = True
            self._socket.close(linger=LINGER_MS)

    def _live(self) -> None:
        while not self._closed:
            time.sleep(SIGN_OF_LIFE_S)
            if time.monotonic() - self._sent >= SIGN_OF_LIFE_S:
                self.send(self._idle_report)


def main(arguments: list[str] | None = None) -> int:
    """Run the engine process until it has to end; its exit status."""
    args = parse_arguments("tandem.engines.server", arguments)
    become_group_leader()
    start_logging(Logging())  # until the deployment file is read
    stopping = threading.Event()
    threading.Thread(target=_watch_parent, args=(args, stopping), name="parent", daemon=True).start()
    return 1 if run_engine(partial(_build, args), args.endpoint, stopping) else 0


def parse_arguments(module: str, arguments: list[str] | None) -> argparse.Namespace:
    """The arguments that the stage gives to the process it starts: this one, or an engine group's supervisor."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--deployment", type=Path, required=True, help="resolved deployment file (.json)")
    parser.add_argument("--worker", required=True, help="name of the worker in it")
    parser.add_argument("--endpoint", required=True, help="ipc:// address, without the endings .commands and .reports")
    parser.add_argument("--parent-fd", type=int, required=True, help="read end of a pipe that the parent keeps open")
    parser.add_argument("--engine", help="engine name or module:function, in place of the deployment's")
    return parser.parse_args(arguments)


def directory_of(endpoint: str) -> Path:
    """Made for the sockets of one engine; the stage removes it in the end."""
    return Path(endpoint.removeprefix("ipc://")).parent


def become_group_leader() -> None:
    """Ctrl-C in the terminal is the parent's, and the parent can end our children with us."""
    with contextlib.suppress(PermissionError):
        os.setpgrp()


def run_engine(build: Callable[[LoadingSink], Engine], endpoint: str, stopping: threading.Event) -> str | None:
    """Build an engine and serve the stage at ``endpoint`` until ``stopping``; what failed, None in good order."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    commands = context.socket(zmq.PULL)
    commands.set_hwm(0)
    commands.bind(f"{endpoint}.commands")
    reporter = Reporter(context, f"{endpoint}.reports")
    problem = _run(build, commands, reporter, stopping)
    reporter.close()
    commands.close(linger=0)
    context.term()
    return problem


def _run(
    build: Callable[[LoadingSink], Engine], commands: zmq.Socket[bytes], reporter: Reporter, stopping: threading.Event
) -> str | None:
    failures: list[str] = []

    def fail(message: str) -> None:
        failures.append(message)
        stopping.set()

    _notice_dead_threads(fail)
    try:
        engine = build(reporter.loading)
        reporter.ready(Ready(worker=engine.info))
        engine.start(reporter.events)
        _stop_on_sigterm(stopping)
        heartbeat.loaded()
        _serve(engine, commands, stopping)
        if not failures:
            engine.stop()
    except TandemError as error:
        fail(error.message)
    except Exception as error:
        log.exception("the engine failed")
        fail(f"{type(error).__name__}: {error}")
    if failures:
        log.error("%s", failures[0])
        reporter.send(EngineError(message=failures[0]))
    return failures[0] if failures else None


def _build(args: argparse.Namespace, loading: LoadingSink) -> Engine:
    deployment = load_deployment(args.deployment)
    start_logging(deployment.logging, worker=args.worker)
    use_network(deployment)
    return build_engine(deployment, deployment.find_worker(args.worker), args.engine, loading)


def build_engine(deployment: Deployment, worker: Worker, name: str | None, loading: LoadingSink) -> Engine:
    """A worker's engine, in a new epoch. ``name`` replaces the deployment's choice.

    Raises:
        TandemError: what in the deployment or the checkpoint cannot be had.
    """
    name = name or worker.engine
    factory = find_engine(name)
    epoch = time.time_ns()  # grows from start to start; 61 bits until the year 2043, 63 until 2262
    log.info("worker %s, epoch %x, engine %s", worker.name, epoch, name)
    return factory(deployment, worker, epoch, loading)


def _serve(engine: Engine, commands: zmq.Socket[bytes], stopping: threading.Event) -> None:
    """Pass commands to the engine until it is time to stop."""
    command_decoder: msgspec.msgpack.Decoder[EngineCommand] = decoder(EngineCommand)
    while not stopping.is_set():
        if not commands.poll(COMMAND_POLL_MS):
            continue
        try:
            command = command_decoder.decode(commands.recv())
        except msgspec.DecodeError as error:
            log.error("dropped a command: %s", error)
            continue
        match command:
            case Start():
                engine.submit(command.work)
            case Cancel():
                engine.cancel(command.request_ids)
            case Pair():
                _pair(engine, command)
            case Unpair():
                engine.unpair(command.worker_id)
            case Stop():
                stopping.set()


def _pair(engine: Engine, command: Pair) -> None:
    try:
        engine.pair(command.peer)
    except TandemError as error:  # the peer is of no use to us, but all others are
        log.error("not paired with %s: %s", command.peer.worker_id, error)
    except Exception:  # nor is one that makes no sense worth the engine
        log.exception("not paired with %s", command.peer.worker_id)


def _stop_on_sigterm(stopping: threading.Event) -> None:
    """Until an engine runs, SIGTERM just ends the process; now there is something to stop in good order."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)


def _notice_dead_threads(fail: Callable[[str], None]) -> None:
    """An engine of which one thread died is not an engine: end, and be started again."""

    def hook(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        log.error("thread %s died", name, exc_info=args.exc_value)
        fail(f"thread {name} died: {args.exc_type.__name__}: {args.exc_value}")

    threading.excepthook = hook


def _watch_parent(args: argparse.Namespace, stopping: threading.Event) -> None:
    """End with the parent: in good order if that is quick, else at once, children included. Nobody else is left to
    remove the directory of the sockets."""
    while os.read(args.parent_fd, 4096):
        pass
    log.warning("the parent process is gone")
    shutil.rmtree(directory_of(args.endpoint), ignore_errors=True)
    stopping.set()
    time.sleep(PARENT_GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # libraries that hang or crash while they unload do not matter any more
