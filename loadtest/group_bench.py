"""What splitting an engine over ranks gains and costs: ``python loadtest/group_bench.py [--json FILE]``.

Groups of 1, 2 and 3 ranks with one thread each, beside one rank with as many threads, on a random model of the demo
model's size whose heads divide by all three. Both take turns, so that they see the same machine.
"""

from __future__ import annotations

import itertools
import json as json_module
import os
import random
import secrets
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from running_engine import RunningEngine
from transformers import AutoModelForCausalLM, LlamaConfig

from tandem.deployment import Deployment, Model, Worker
from tandem.keys import KEY_BYTES, KEY_VARIABLE
from tandem.messages import Generate, Sampling, Stopping

ROOT = Path(__file__).parents[1]
DEMO = ROOT / ".tandem" / "models" / "smollm2-135m-instruct"
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 48}
"""9 heads and 3 KV heads, as the demo model has, do not divide by 2."""
SIZES = (1, 2, 3)
PREFILL_TOKENS, PROMPT_TOKENS, STEPS = 512, 64, 48
BATCHES = (1, 8)


@dataclass(frozen=True)
class GroupBenchRow:
    """One workload on one size: tokens per second, and where the time of the group's steps went."""

    name: str
    ranks: int
    group: float
    one_rank: float
    """With as many threads."""
    ratio: float
    collectives: float
    """Share of the group's step time that its leader spent in collectives, waiting for others included."""
    rest: float
    """What else the group lost: 1 - ratio - collectives. Below 0, its ranks multiply quicker than one's threads."""


@dataclass(frozen=True)
class GroupBenchReport:
    """All workloads of one run."""

    repetitions: int
    cores: int
    rows: list[GroupBenchRow]


@dataclass(frozen=True)
class _Sample:
    tokens_per_s: float
    collectives: float


def run_group_bench(repetitions: int = 3) -> GroupBenchReport:
    """Measure every workload ``repetitions`` times on every size."""
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(KEY_BYTES))
    rows = []
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        directory = Path(name)
        model = make_model(directory / "model")
        for size in SIZES:
            with ExitStack() as stack:
                group = stack.enter_context(_engine(model, directory, f"group_{size}", ranks=size, threads=1))
                single = stack.enter_context(_engine(model, directory, f"single_{size}", ranks=1, threads=size))
                for engine in (group, single):
                    engine.wait_ready()
                for batch in (0, *BATCHES):
                    rows.append(_measure(batch, size, group, single, repetitions))
    return GroupBenchReport(repetitions, os.cpu_count() or 1, rows)


def make_model(directory: Path) -> Path:
    """A random model of the demo model's size."""
    config = json_module.loads((DEMO / "config.json").read_bytes()) | HEADS
    model: Any = AutoModelForCausalLM  # its methods have no types
    model.from_config(LlamaConfig(**config)).save_pretrained(directory)
    (directory / "tandem.json").write_text(json_module.dumps({"fingerprint": "random"}))
    return directory


def _engine(model: Path, directory: Path, name: str, ranks: int, threads: int) -> RunningEngine:
    common: dict[str, Any] = {"kv_memory": "256MiB", "max_batch_size": max(BATCHES)}
    worker = Worker(name=name, stage="decode", tensor_parallel_size=ranks, threads=threads, **common)
    return RunningEngine(Deployment(name="bench", model=Model(path=str(model)), worker=[worker]), name, directory)


def _measure(batch: int, size: int, group: RunningEngine, single: RunningEngine, repetitions: int) -> GroupBenchRow:
    """``batch`` 0: one long prompt is read."""
    ours, theirs = [], []
    for repetition in range(repetitions + 1):
        samples = _run(group, batch), _run(single, batch)
        if repetition:  # the first one warms up
            ours.append(samples[0])
            theirs.append(samples[1])
    speed, other = (statistics.median(s.tokens_per_s for s in samples) for samples in (ours, theirs))
    ratio, collectives = speed / other, statistics.median(s.collectives for s in ours)
    name = f"decode, batch {batch}" if batch else f"prefill, {PREFILL_TOKENS} tokens"
    return GroupBenchRow(name, size, speed, other, ratio, collectives, 1 - ratio - collectives)


_ids = itertools.count()


def _run(engine: RunningEngine, batch: int) -> _Sample:
    """One prompt read, or ``batch`` answers written, from the last first token on."""
    steps = STEPS if batch else 0
    work = [
        Generate(
            request_id=str(next(_ids)),
            token_ids=[random.randrange(1000) for _ in range(PROMPT_TOKENS if batch else PREFILL_TOKENS)],
            sampling=Sampling(),
            stopping=Stopping(max_tokens=steps + 1),
        )
        for _ in range(max(1, batch))
    ]
    before, began = engine.until_idle(), time.perf_counter()
    engine.run(list(work))
    ended, after = time.perf_counter(), engine.until_idle()
    first = max(engine.first_tokens[w.request_id] for w in work)
    seconds, tokens = (ended - first, batch * steps) if batch else (first - began, PREFILL_TOKENS)
    spent = after.step_seconds - before.step_seconds
    return _Sample(tokens / seconds, (after.collective_seconds - before.collective_seconds) / spent)


def table(report: GroupBenchReport) -> Table:
    """The report for a terminal."""
    title = f"ranks of one thread each beside as many threads in one rank; {report.cores} cores"
    columns = ("tokens/s", "ranks", "group", "one rank", "ratio", "in collectives", "rest")
    result = Table(*columns, title=title)
    for column in result.columns[1:]:
        column.justify = "right"
    for r in report.rows:
        figures = (f"{r.group:.1f}", f"{r.one_rank:.1f}", f"{r.ratio:.2f}", f"{r.collectives:.2f}", f"{r.rest:.2f}")
        result.add_row(r.name, str(r.ranks), *figures)
    return result


def main(
    repetitions: Annotated[int, typer.Option(help="Measurements per figure.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Where to write the report.")] = None,
) -> None:
    """Measure and print the table."""
    report = run_group_bench(repetitions)
    Console().print(table(report))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))


if __name__ == "__main__":
    typer.run(main)
