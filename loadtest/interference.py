"""How much long prompts hold up answers that are being written: ``python loadtest/interference.py``.

Some answers run; then long prompts come, each as soon as the one before has its first token. The time between two
tokens of the running answers is measured where both stages are one worker's, without chunks and with them, and where
each stage has its own, on as many threads together. Engines run in processes of their own, as behind Triton.
"""

from __future__ import annotations

import itertools
import os
import queue
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import msgspec
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from style import BLUE, GREY, ORANGE, STYLE

from tandem.deployment import Deployment, Limits, Model, Worker, to_json
from tandem.engines.client import EngineProcess
from tandem.engines.torch.config import read_config
from tandem.keys import KEY_BYTES, KEY_VARIABLE
from tandem.messages import (
    AnyWork,
    Cancel,
    Decode,
    EngineEvent,
    EngineReport,
    Events,
    Failed,
    Generate,
    Pair,
    Prefill,
    Prefilled,
    Ready,
    Sampling,
    Start,
    Stopping,
    Tokens,
    WorkerInfo,
)

ROOT = Path(__file__).parents[1]
SHORT_PROMPT = 64
LONG_ANSWER, SHORT_ANSWER = 3000, 4
"""Tokens of the running answers, which are cancelled in the end, and of those to the long prompts."""
TIMEOUT_S = 300.0
WHOLE_MS = 1e6
"""A bound that has every prompt read at once."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    model: str
    dtype: str
    threads: int
    running: int
    prompts: int
    prompt_tokens: int
    max_inter_token_ms: float


@dataclass(frozen=True)
class InterferenceRow:
    """One set-up; milliseconds."""

    name: str
    p50: float
    p99: float
    most: float
    quiet_p50: float
    """Before the long prompts came."""
    ttft: float
    """Of the long prompts, mean."""
    gaps: list[float]
    """Every time between two tokens of a running answer while long prompts were read."""


@dataclass(frozen=True)
class InterferenceReport:
    """All set-ups of one run."""

    plan: Plan
    rows: list[InterferenceRow]


# ---------------------------------------------------------------- engines


class Engines:
    """Engine processes of one deployment, all of whose events go into one queue."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._file, self._stack = file, stack
        self._events: queue.SimpleQueue[tuple[float, list[EngineEvent]]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[WorkerInfo | str] = queue.SimpleQueue()
        self._processes: dict[str, EngineProcess] = {}
        self._infos: list[WorkerInfo] = []

    def start(self, worker: Worker) -> None:
        """Start one worker's engine, and pair it with the others."""
        log = self._file.with_name(f"{worker.name}.log")
        process = EngineProcess(self._file, worker.name, log, on_report=self._take, on_exit=self._ready.put)
        process.start()
        self._stack.callback(process.stop, 10.0)
        self._processes[worker.name] = process
        info = self._ready.get(timeout=TIMEOUT_S)
        if isinstance(info, str):
            raise SystemExit(f"engine {worker.name} ended: {info}")
        for other in self._infos:
            self._processes[other.worker_id].send(Pair(peer=info))
            process.send(Pair(peer=other))
        self._infos.append(info)

    def submit(self, worker: str, work: AnyWork) -> None:
        """Give work to one of them."""
        self._processes[worker].send(Start(work=[work]))

    def cancel(self, request_ids: list[str]) -> None:
        """Have all of them give up these requests."""
        for process in self._processes.values():
            process.send(Cancel(request_ids=request_ids))

    def events(self) -> Iterator[tuple[float, EngineEvent]]:
        """Every event with the time at which it came."""
        while True:
            at, events = self._events.get(timeout=TIMEOUT_S)
            for event in events:
                if isinstance(event, Failed):
                    raise SystemExit(f"{event.request_id}: {event.message}")
                yield at, event

    def _take(self, report: EngineReport) -> None:
        if isinstance(report, Events) and report.events:
            self._events.put((time.perf_counter(), report.events))
        elif isinstance(report, Ready):
            self._ready.put(report.worker)


@contextmanager
def run_engines(plan: Plan, max_inter_token_ms: float, apart: bool) -> Iterator[Engines]:
    """The engines of one set-up, ended on the way out; together they have ``plan.threads`` threads."""
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(KEY_BYTES))
    common: dict[str, Any] = {
        "threads": max(1, plan.threads // 2) if apart else plan.threads,
        "max_batch_tokens": max(2048, plan.prompt_tokens),
        "kv_memory": "2GiB",
    }
    workers = [Worker(name="prefill_0", stage="prefill", **common), Worker(name="decode_0", stage="decode", **common)]
    deployment = Deployment(
        name="interference",
        model=msgspec.convert({"path": str(Path(plan.model).resolve()), "dtype": plan.dtype}, Model),
        worker=workers,
        limits=Limits(max_inter_token_ms=max_inter_token_ms),
    )
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory, ExitStack() as stack:
        file = Path(directory, "deployment.json")
        file.write_bytes(to_json(deployment))
        engines = Engines(file, stack)
        for worker in workers if apart else workers[1:]:
            engines.start(worker)
        yield engines


# ---------------------------------------------------------------- one set-up


class Run:
    """The events of one set-up, sorted as they come."""

    def __init__(self, plan: Plan, engines: Engines, apart: bool) -> None:
        self._plan, self._engines, self._apart = plan, engines, apart
        self._vocab_size = read_config(Path(plan.model)).vocab_size
        self._work: dict[str, Generate] = {}
        self._first_token: dict[str, int] = {}
        self._token_times: dict[str, list[float]] = {}
        self._events = engines.events()

    def measure(self, name: str) -> InterferenceRow:
        """Answers alone, then with long prompts."""
        running = [self._submit(f"running-{i}", SHORT_PROMPT, LONG_ANSWER) for i in range(self._plan.running)]
        self._wait_until(lambda: all(len(self._token_times[r]) >= 10 for r in running))
        self._ask_long("warm-up")
        began = time.perf_counter()
        self._wait_until(lambda: all(self._count_since(r, began) >= 20 for r in running))
        busy = time.perf_counter()
        ttfts = [self._ask_long(f"long-{i}") for i in range(self._plan.prompts)]
        self._engines.cancel(running)
        gaps = sorted(1e3 * gap for r in running for gap in self._gaps(r, busy))
        quiet = [1e3 * gap for r in running for gap in self._gaps(r, began, busy)]
        p99 = gaps[int(0.99 * (len(gaps) - 1))]
        return InterferenceRow(
            name, statistics.median(gaps), p99, gaps[-1], statistics.median(quiet), 1e3 * statistics.mean(ttfts), gaps
        )

    def _ask_long(self, request_id: str) -> float:
        """One long prompt; seconds to its first token."""
        began = time.perf_counter()
        self._submit(request_id, self._plan.prompt_tokens, SHORT_ANSWER)
        self._wait_until(lambda: bool(self._token_times[request_id]))
        return self._token_times[request_id][0] - began

    def _submit(self, request_id: str, prompt: int, answer: int) -> str:
        work = Generate(
            request_id=request_id,
            token_ids=[random.randrange(self._vocab_size) for _ in range(prompt)],
            sampling=Sampling(),
            stopping=Stopping(max_tokens=answer),
        )
        self._work[request_id], self._token_times[request_id] = work, []
        if self._apart:
            self._engines.submit("prefill_0", Prefill(**_fields(work)))
        else:
            self._engines.submit("decode_0", work)
        return request_id

    def _wait_until(self, condition: Any) -> None:
        while not condition():
            at, event = next(self._events)
            if isinstance(event, Tokens):
                self._token_times[event.request_id] += [at] * len(event.token_ids)
                self._first_token.setdefault(event.request_id, event.token_ids[0])
            elif isinstance(event, Prefilled) and event.handle is not None:
                fields = _fields(self._work[event.request_id])
                fields["output_ids"] = [self._first_token[event.request_id]]
                self._engines.submit("decode_0", Decode(**fields, handle=event.handle))

    def _count_since(self, request_id: str, since: float) -> int:
        return sum(at >= since for at in self._token_times[request_id])

    def _gaps(self, request_id: str, since: float, until: float = float("inf")) -> list[float]:
        """Seconds between tokens, of those gaps that end in this time."""
        times = self._token_times[request_id]
        return [b - a for a, b in itertools.pairwise(times) if since <= b < until]


def _fields(work: Generate) -> dict[str, Any]:
    return {field: getattr(work, field) for field in work.__struct_fields__}


# ---------------------------------------------------------------- all set-ups


def run_interference(plan: Plan) -> InterferenceReport:
    """Measure the three set-ups, one after the other."""
    rows = []
    for name, bound_ms, apart in (
        ("one worker, whole prompts", WHOLE_MS, False),
        (f"one worker, chunks (bound {plan.max_inter_token_ms:g} ms)", plan.max_inter_token_ms, False),
        ("prefill and decode apart", plan.max_inter_token_ms, True),
    ):
        with run_engines(plan, bound_ms, apart) as engines:
            rows.append(Run(plan, engines, apart).measure(name))
    return InterferenceReport(plan, rows)


def table(report: InterferenceReport) -> Table:
    """The report for a terminal."""
    plan = report.plan
    title = (
        f"{Path(plan.model).name}, {plan.dtype}, {plan.threads} thread(s); {plan.running} answers, "
        f"{plan.prompts} prompts of {plan.prompt_tokens} tokens"
    )
    result = Table("ms between tokens", "p50", "p99", "most", "p50 in quiet", "TTFT of the prompts", title=title)
    for column in result.columns[1:]:
        column.justify = "right"
    for row in report.rows:
        result.add_row(row.name, *(f"{x:.0f}" for x in (row.p50, row.p99, row.most, row.quiet_p50, row.ttft)))
    return result


def draw(report: InterferenceReport, out: Path) -> None:
    """Which share of the times between tokens was longer than so many milliseconds."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 3.3), layout="constrained", facecolor="white")
        axes: Any = figure.subplots()
        for row, color in zip(report.rows, (GREY, ORANGE, BLUE), strict=True):
            count = len(row.gaps)
            axes.step(row.gaps, [1 - i / count for i in range(count)], color=color, label=row.name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("ms between two tokens of a running answer")
        axes.set_ylabel("share that took longer")
        axes.set_title(f"{report.plan.prompt_tokens}-token prompts beside {report.plan.running} running answers")
        axes.legend(loc="lower left")
        figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path(".tandem/models/smollm2-135m-instruct"),
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int, typer.Option(help="CPU threads of all engines of a set-up together.")] = 2,
    running: Annotated[int, typer.Option(help="Answers that run.")] = 8,
    prompts: Annotated[int, typer.Option(help="Long prompts.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 1500,
    max_inter_token_ms: Annotated[float, typer.Option(help="The bound where prompts are cut.")] = 200.0,
    json: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "interference.json",
    plot: Annotated[Path | None, typer.Option(help="Where to draw the picture; .svg or .png.")] = None,
) -> None:
    """Measure, print the table, write the report and draw the picture."""
    plan = Plan(str(model), dtype, threads, running, prompts, prompt_tokens, max_inter_token_ms)
    report = run_interference(plan)
    Console().print(table(report))
    json.parent.mkdir(parents=True, exist_ok=True)
    json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))
    if plot is not None:
        draw(report, plot)


if __name__ == "__main__":
    typer.run(main)
