"""How fast the bare torch engine is, beside transformers and beside what the machine allows.

``python loadtest/engine_bench.py [--threads N] [--json FILE]``. Engine and transformers run the same model in the same
dtype, on the same number of threads, taking turns in one process, so that both see the same machine; each figure is a
median. Decode figures count the steps after the prompts were read: 64-token prompts, greedy.
"""

from __future__ import annotations

import itertools
import os
import queue
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, DynamicCache

from tandem.deployment import Deployment, Kv, Model, Worker
from tandem.engines.torch.config import ModelConfig, read_config
from tandem.engines.torch.engine import create
from tandem.engines.torch.runner import DTYPES
from tandem.keys import KEY_BYTES, KEY_VARIABLE
from tandem.messages import EngineEvent, Failed, Finished, Generate, KvEvent, Load, Sampling, Stopping, Tokens

BATCHES = (1, 8, 32)
PREFILL_TOKENS = 512
PROMPT_TOKENS = 64
STEPS = 48
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Machine:
    """What the machine can do with the threads of the run, measured in it."""

    threads: int
    read_gb_per_s: float
    gflop_per_s: float
    """In the dtype of the run, large matrix product."""


@dataclass(frozen=True)
class EngineBenchRow:
    """One workload: tokens per second."""

    name: str
    engine: float
    transformers: float
    ratio: float
    """Engine over transformers."""
    bandwidth_limit: float
    """If only reading weights and KV took time."""
    compute_limit: float
    """If only multiplying took time."""


@dataclass(frozen=True)
class EngineBenchReport:
    """All workloads of one run."""

    model: str
    dtype: str
    repetitions: int
    machine: Machine
    rows: list[EngineBenchRow]


@dataclass(frozen=True)
class Workload:
    """``batch`` prompts of ``prompt`` tokens, then ``steps`` decode steps; without steps the prompt is measured."""

    batch: int
    prompt: int
    steps: int

    @property
    def name(self) -> str:
        return f"decode, batch {self.batch}" if self.steps else f"prefill, {self.prompt} tokens"

    @property
    def tokens(self) -> int:
        return self.batch * (self.steps or self.prompt)


WORKLOADS = (Workload(1, PREFILL_TOKENS, 0), *(Workload(b, PROMPT_TOKENS, STEPS) for b in BATCHES))


def run_engine_bench(
    model_dir: Path, threads: int = 1, repetitions: int = 5, dtype: str = "bfloat16", baseline: bool = True
) -> EngineBenchReport:
    """Measure every workload ``repetitions`` times; without ``baseline`` the figures of transformers are NaN."""
    torch.set_num_threads(threads)
    config = read_config(model_dir)
    peer = _Transformers(model_dir, dtype) if baseline else None
    rows = []
    with bare_engine(model_dir, threads, dtype) as engine:
        machine = _measure_machine(threads, DTYPES[dtype])
        for workload in WORKLOADS:
            ours, theirs = [], []
            for repetition in range(repetitions + 1):
                prompts = random_prompts(workload, config.vocab_size)
                seconds = engine.run(prompts, workload.steps)
                reference = peer.run(prompts, workload.steps) if peer else float("nan")
                if repetition:  # the first one warms up
                    ours.append(workload.tokens / seconds)
                    theirs.append(workload.tokens / reference)
            rows.append(_row(workload, ours, theirs, config, machine, DTYPES[dtype].itemsize))
    return EngineBenchReport(model_dir.name, dtype, repetitions, machine, rows)


def table(report: EngineBenchReport) -> Table:
    """The report for a terminal."""
    machine = report.machine
    title = (
        f"{report.model}, {report.dtype}, {machine.threads} thread(s), median of {report.repetitions}\n"
        f"this machine reads {machine.read_gb_per_s:.1f} GB/s and multiplies {machine.gflop_per_s:.0f} GFLOP/s"
    )
    columns = ("tokens/s", "engine", "transformers", "ratio", "bandwidth", "compute")
    result = Table(*columns, title=title)
    for column in result.columns[1:]:
        column.justify = "right"
    for row in report.rows:
        figures = (row.engine, row.transformers, row.ratio, row.bandwidth_limit, row.compute_limit)
        formats = ("{:.1f}", "{:.1f}", "{:.2f}", "{:.0f}", "{:.0f}")
        result.add_row(row.name, *(f.format(x) for f, x in zip(formats, figures, strict=True)))
    return result


def _row(
    workload: Workload,
    ours: list[float],
    theirs: list[float],
    config: ModelConfig,
    machine: Machine,
    itemsize: int,
) -> EngineBenchRow:
    engine, transformers = statistics.median(ours), statistics.median(theirs)
    weights = _weights(config)
    context = workload.batch * (workload.prompt + workload.steps / 2) if workload.steps else 0
    read = itemsize * weights + context * config.kv_bytes_per_token(itemsize)
    per_pass = workload.batch if workload.steps else workload.prompt
    head = config.vocab_size * config.hidden_size
    multiplied = weights if workload.steps else weights - head  # prefill needs the output layer for one row only
    return EngineBenchRow(
        name=workload.name,
        engine=engine,
        transformers=transformers,
        ratio=engine / transformers,
        bandwidth_limit=per_pass * machine.read_gb_per_s * 1e9 / read,
        compute_limit=machine.gflop_per_s * 1e9 / (2 * multiplied),
    )


def _weights(config: ModelConfig) -> int:
    """Elements of all matrices that a token is multiplied with."""
    c = config
    heads = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return c.num_layers * (heads + 3 * c.hidden_size * c.intermediate_size) + c.vocab_size * c.hidden_size


def random_prompts(workload: Workload, vocab_size: int) -> list[list[int]]:
    """As many prompts as the workload has, of tokens drawn at random."""
    return [[random.randrange(vocab_size) for _ in range(workload.prompt)] for _ in range(workload.batch)]


# ---------------------------------------------------------------- the engine


class BareEngine:
    """The torch engine as the stages use it: work in, events out of its own thread."""

    def __init__(self, deployment: Deployment) -> None:
        self._engine = create(deployment, deployment.worker[0], 1, lambda _what, _done: None)
        self._events: queue.SimpleQueue[tuple[float, list[EngineEvent]]] = queue.SimpleQueue()
        self._ids = itertools.count()
        self._engine.start(self._sink)
        self.stop = self._engine.stop

    def _sink(self, events: list[EngineEvent], _load: Load, _kv: Sequence[KvEvent] = ()) -> None:
        self._events.put((time.perf_counter(), events))

    def run(self, prompts: Sequence[list[int]], steps: int) -> float:
        """Seconds to read the one prompt (no ``steps``), or for all ``steps`` after the prompts were read."""
        began = time.perf_counter()
        self._engine.submit(
            [
                Generate(
                    request_id=str(next(self._ids)),
                    token_ids=prompt,
                    sampling=Sampling(),
                    stopping=Stopping(max_tokens=steps + 1),
                )
                for prompt in prompts
            ]
        )
        read = self._wait_for(len(prompts), lambda event: isinstance(event, Tokens) and event.index == 0)
        end = self._wait_for(len(prompts), lambda event: isinstance(event, Finished)) if steps else read
        return end - read if steps else read - began

    def _wait_for(self, count: int, wanted: Callable[[EngineEvent], bool]) -> float:
        """When the last of ``count`` wanted events came."""
        while count:
            at, events = self._events.get(timeout=TIMEOUT_S)
            failed = next((event for event in events if isinstance(event, Failed)), None)
            if failed is not None:
                raise RuntimeError(failed.message)
            count -= sum(map(wanted, events))
        return at


@contextmanager
def bare_engine(model_dir: Path, threads: int, dtype: str) -> Iterator[BareEngine]:
    """The engine alone, in this process, ended on the way out."""
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(KEY_BYTES))
    common: dict[str, Any] = {"threads": threads, "max_batch_size": max(BATCHES), "kv_memory": "512MiB"}
    workers = [Worker(name="engine", stage="decode", **common), Worker(name="unused", stage="prefill", **common)]
    model = msgspec.convert({"path": str(model_dir), "dtype": dtype}, Model)
    engine = BareEngine(Deployment(name="bench", model=model, worker=workers, kv=Kv()))
    try:
        yield engine
    finally:
        engine.stop()


# ---------------------------------------------------------------- transformers


class _Transformers:
    """The baseline, in a loop of its own: quicker than ``generate``, which does more per step."""

    def __init__(self, model_dir: Path, dtype: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPES[dtype])

    @torch.inference_mode()
    def run(self, prompts: Sequence[list[int]], steps: int) -> float:
        """As ``BareEngine.run``."""
        cache = DynamicCache()
        began = time.perf_counter()
        tokens = self._step(torch.tensor(prompts), cache)
        read = time.perf_counter()
        for _ in range(steps):
            tokens = self._step(tokens, cache)
        return time.perf_counter() - read if steps else read - began

    def _step(self, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        logits = self._model(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        likeliest: torch.Tensor = logits[:, -1:].argmax(-1)
        return likeliest


# ---------------------------------------------------------------- the machine


def _measure_machine(threads: int, dtype: torch.dtype) -> Machine:
    memory = torch.ones(75_000_000)  # 300 MB, beyond any cache
    read_s = _best_of(5, lambda: memory.sum())
    size = 2048
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    multiply_s = _best_of(5, lambda: left @ right)
    return Machine(threads, memory.nbytes / read_s / 1e9, 2 * size**3 / multiply_s / 1e9)


def _best_of(times: int, action: Callable[[], object]) -> float:
    """Least seconds: what the machine can do, not what it usually does."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path(".tandem/models/smollm2-135m-instruct"),
    threads: Annotated[int, typer.Option(help="CPU threads of engine and baseline.")] = 1,
    repetitions: Annotated[int, typer.Option(help="Measurements per figure.")] = 5,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    baseline: Annotated[bool, typer.Option(help="Measure transformers too.")] = True,
    json: Annotated[Path | None, typer.Option(help="Where to write the report.")] = None,
) -> None:
    """Measure the bare engine and print the table."""
    report = run_engine_bench(model, threads, repetitions, dtype, baseline)
    Console().print(table(report))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))


if __name__ == "__main__":
    typer.run(main)
