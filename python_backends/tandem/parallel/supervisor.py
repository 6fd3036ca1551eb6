"""The supervisor of an engine group: starts its ranks under mpiexec, watches them, and ends them all together.

``python -m tandem.parallel.supervisor`` has the arguments of ``tandem.engines.server``, in whose place the stage starts
it. It is no rank itself, so nothing that befalls the MPI job befalls it. Rank 0 speaks with the stage. When the group
has to be ended, the supervisor's last words are the cause; the stage starts it again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable

import msgspec
import zmq

from tandem.deployment import Deployment, Worker, load_deployment
from tandem.engines.server import PARENT_GRACE_S, become_group_leader, directory_of, parse_arguments
from tandem.errors import TandemError
from tandem.logs import Logging, label, start_logging
from tandem.messages import EngineError, EngineReport, Heartbeat, Loading, encode
from tandem.parallel import heartbeat, processes
from tandem.parallel.group_call import plan_group
from tandem.parallel.job import Job
from tandem.parallel.shared_memory import remove_group
from tandem.parallel.verdict import summarize
from tandem.parallel.watch import Watch

log = logging.getLogger(__name__)

TICK_S = 0.1
DRAIN_S = 1.0
"""For mpiexec to say what it knows, when a job ends by itself, or what ranks said last."""
TERMINATE_S = 1.5
"""For mpiexec to end ranks on other hosts."""
GUARDS_S = 3.0
"""For guards to end ranks here when mpiexec is gone, and to tidy up; what is left is killed then."""
STOP_GRACE_S = 3.0
"""From the leader's good end to that of its followers."""
REPORT_PERIOD_S = 1.0
LINGER_MS = 1000
_beat_decoder = msgspec.json.Decoder(Heartbeat)


class Supervisor:
    """One run of one engine group."""

    def __init__(
        self,
        deployment: Deployment,
        worker: Worker,
        endpoint: str,
        engine: str | None,
        report: Callable[[EngineReport], None],
    ) -> None:
        """``endpoint`` is for rank 0, ``engine`` replaces the deployment's choice; ``report`` tells the stage.

        Raises:
            TandemError: the group cannot be started.
            OSError: likewise.
        """
        self._worker = worker
        self._hosts = hosts_of(worker)
        self._says_json = deployment.logging.format == "json"
        self._report = report
        self._tag = uuid.uuid4().hex
        self._directory = directory_of(endpoint)
        self._is_orphan = False
        environment = {**os.environ, processes.TAG: self._tag}
        call = plan_group(deployment, worker, endpoint, engine, environment, self._directory)
        for path, text in call.files.items():
            path.write_text(text)
        self._watched = call.watched
        self._watch = Watch(self._hosts[: call.watched], deployment.parallel.hang_timeout_s, time.monotonic())
        self._stop_by: float | None = None
        """When to end the group, even if it has not stopped by itself."""
        self._reported = 0.0
        self._ran = False
        """Whether all ranks have been running at one time."""
        log.info("%s starts %d ranks", call.command[0], worker.group_size)
        self._job = Job(
            call.command, call.environment, call.marker, on_output=self._take_output, on_words=self._write_words
        )

    def run(self, parent_fd: int) -> str | None:
        """Stay until the group has ended, and nothing of it is left here; why, None if it ended in good order."""
        self._job.listen(parent_fd, lambda: self._note_parent(parent_fd))
        try:
            return self._supervise()
        finally:
            if len(self._worker.hosts) > 1:
                self._job.terminate(TERMINATE_S)
            self._job.kill()
            processes.wait_group(self._tag, GUARDS_S)
            if not processes.end_group(self._tag):
                log.error("processes of the group survive SIGKILL")
            remove_group(self._tag)
            self._job.close()
            if self._is_orphan:
                shutil.rmtree(self._directory, ignore_errors=True)

    def stop(self) -> None:
        """Ask the leader to end the group in good order, and give it some time. One that still loads is just ended."""
        if self._stop_by is not None:
            return
        self._stop_by = time.monotonic()
        pid = self._watch.pid(0)
        if pid is not None and self._watch.phase(0) != "loading":
            self._stop_by += PARENT_GRACE_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _supervise(self) -> str | None:
        while True:
            self._job.step(TICK_S)
            now = time.monotonic()
            if self._is_over(now):
                if self._watch.all_are("stopped"):
                    self._job.drain(DRAIN_S, ranks=self._watched)
                return None
            if (problem := self._find_problem(now)) is not None:
                return problem
            self._show_life(now)

    def _is_over(self, now: float) -> bool:
        """Whether the group has stopped in good order, or had its time to."""
        if self._watch.phase(0) == "stopped" and self._stop_by is None:
            self._stop_by = now + STOP_GRACE_S
        return self._watch.all_are("stopped") or (self._stop_by is not None and now > self._stop_by)

    def _find_problem(self, now: float) -> str | None:
        if (problem := self._watch.find_problem(now)) is not None:
            return problem
        if self._stop_by is not None:
            return None
        if (status := self._job.status()) is None:
            return None
        if status < 0:  # ranks end with it, so this is first
            return f"mpiexec was killed by {signal.Signals(-status).name}"
        self._job.drain(DRAIN_S)
        said = f"mpiexec has ended with status {status}: {summarize(self._job.words())}"
        return None if self._watch.all_are("stopped") else self._watch.find_end() or said

    def _show_life(self, now: float) -> None:
        """Until rank 0 speaks with the stage; while it starts MPI it cannot speak either."""
        if now - self._reported > REPORT_PERIOD_S and self._watch.is_starting(0, now):
            self._report(Loading(what="ranks", fraction=self._watch.heard / self._watched))
            self._reported = now

    # ------------------------------------------------------------ what comes in

    def _take_output(self, rank: int, line: bytes) -> None:
        if rank >= self._watched or not line.startswith(heartbeat.PREFIX):
            self._write_words(rank, line.decode(errors="replace"))
            return
        try:
            beat = _beat_decoder.decode(line[len(heartbeat.PREFIX) :])
        except msgspec.DecodeError as error:
            log.error("dropped a heartbeat of rank %d: %s", rank, error)
            return
        self._watch.hear(rank, beat, time.monotonic())
        if not self._ran and self._watch.all_are("running"):
            self._ran = True
            log.info("all ranks are running")

    def _write_words(self, rank: int | None, line: str) -> None:
        host = None if rank is None else self._hosts[rank]
        who = "mpiexec" if rank is None else f"rank {rank} {host}" if host else f"rank {rank}"
        said = label(line, worker=self._worker.name, by=who) if self._says_json else f"[{who}] {line}"
        print(said, file=sys.stderr, flush=True)

    def _note_parent(self, fd: int) -> None:
        if not os.read(fd, 4096):
            log.warning("the parent process is gone")
            self._is_orphan = True
            self._job.unlisten(fd)
            self.stop()


def hosts_of(worker: Worker) -> list[str | None]:
    """Where each rank runs, as the deployment calls it; None: on this machine, which needs no name."""
    if not worker.hosts:
        return [None] * worker.group_size
    return [worker.host_of(rank) or worker.hosts[0] for rank in range(worker.group_size)]


def main(arguments: list[str] | None = None) -> int:
    """Run the supervisor until the group has ended; its exit status."""
    args = parse_arguments("tandem.parallel.supervisor", arguments)
    become_group_leader()
    start_logging(Logging())  # until the deployment file is read
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    reports = context.socket(zmq.PUSH)
    reports.connect(f"{args.endpoint}.reports")
    problem = _supervise(args, lambda report: reports.send(encode(report)))
    if problem is not None:
        problem += "; the group is ended"
        reports.send(encode(EngineError(message=problem)))
        log.error("%s", problem)
    reports.close(linger=LINGER_MS)
    context.term()
    return 0 if problem is None else 1


def _supervise(args: argparse.Namespace, report: Callable[[EngineReport], None]) -> str | None:
    try:
        deployment = load_deployment(args.deployment)
        worker = deployment.find_worker(args.worker)
        start_logging(deployment.logging, worker=worker.name)
        supervisor = Supervisor(deployment, worker, args.endpoint, args.engine, report)
    except TandemError as error:
        return error.message
    except OSError as error:
        return f"the ranks cannot be started: {error}"
    signal.signal(signal.SIGTERM, lambda _number, _frame: supervisor.stop())
    return supervisor.run(args.parent_fd)


if __name__ == "__main__":
    sys.exit(main())
