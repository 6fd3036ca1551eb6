"""The measured figures of the README: ``python loadtest/report.py`` writes them between its ``figures`` marks.

Reads what they left in ``.tandem``: ``bench.json`` (``make bench``), ``perf/perf.json`` (``make perf``), ``soak.json``
(``python loadtest/soak.py``) and ``simulation.json`` (``make simulate``). A table without its file is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from engine_bench import EngineBenchReport
from group_bench import GroupBenchReport
from kv_bench import KvBenchReport, KvBenchRow
from memory import OUTLOOK
from perf import OUTPUT_TOKENS, Row
from simulate import Run
from soak import Round
from stack_bench import StackBenchReport

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


@dataclass(frozen=True)
class BenchReport:
    """``bench.json``."""

    engine: EngineBenchReport
    stack: StackBenchReport
    kv: KvBenchReport
    group: GroupBenchReport


def read_bench(path: Path) -> BenchReport:
    """What ``make bench`` wrote.

    Raises:
        SystemExit: there is none.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing; make it with: make bench")
    return msgspec.json.decode(path.read_bytes(), type=BenchReport)


def engine_section(report: EngineBenchReport) -> str:
    """The bare engine beside transformers."""
    machine = report.machine
    title = (
        f"**Bare engine beside transformers**, {report.model}, {report.dtype}, {machine.threads} thread(s), "
        f"median of {report.repetitions}; this machine reads {machine.read_gb_per_s:.1f} GB/s and multiplies "
        f"{machine.gflop_per_s:.0f} GFLOP/s "
        "(`python loadtest/engine_bench.py`)"
    )
    head = ("tokens/s", "engine", "transformers", "ratio", "limit by bandwidth", "limit by compute")
    rows = [
        (
            r.name,
            f"{r.engine:.1f}",
            f"{r.transformers:.1f}",
            f"{r.ratio:.2f}",
            f"{r.bandwidth_limit:,.0f}",
            f"{r.compute_limit:,.0f}",
        )
        for r in report.rows
    ]
    return f"{title}\n\n{table(head, rows)}"


def stack_section(report: StackBenchReport) -> str:
    """The whole stack beside the bare engine."""
    title = (
        f"**Whole stack beside the bare engine**, {report.threads} thread(s) an engine, median of {report.repetitions} "
        "(`make bench`)"
    )
    rows = [[f"{r.name}, {r.unit}", f"{r.stack:.1f}", f"{r.engine:.1f}", f"{r.ratio:.2f}"] for r in report.rows]
    rows.append(["added time to first token, ms", f"{report.added_ttft_ms:.1f}", "", ""])
    return f"{title}\n\n{table(('', 'whole stack', 'bare engine', 'ratio'), rows)}"


def kv_section(report: KvBenchReport) -> str:
    """KV transfer beside memcpy."""
    title = f"**KV transfer beside memcpy**, median of {report.repetitions} (`python loadtest/kv_bench.py`)"
    head = "size", "bytes are in", "pull, ms", "pull, GB/s", "memcpy, GB/s", "ratio"
    rows = [_kv_cells(row) for row in report.rows]
    groups = (
        "**Between groups that split the model differently** (tp: tensor-parallel size, pp: pipeline stages), all "
        "ranks on one host, in the same run"
    )
    reshards = [[f"{r.prefill} → {r.decode}", *_kv_cells(r.figures)] for r in report.reshards]
    return f"{title}\n\n{table(head, rows)}\n\n{groups}\n\n{table(('groups', *head), reshards)}"


def _kv_cells(row: KvBenchRow) -> list[str]:
    figures = f"{row.pull_ms:.2f}", f"{row.pull_gb_per_s:.1f}", f"{row.memcpy_gb_per_s:.1f}", f"{row.ratio:.2f}"
    return [f"{row.mib} MiB", "cache" if row.cached else "memory", *figures]


def group_section(report: GroupBenchReport) -> str:
    """Groups of ranks beside one rank."""
    title = (
        f"**Ranks of one thread each beside as many threads in one rank**, {report.cores} cores, median of "
        f"{report.repetitions} (`python loadtest/group_bench.py`)"
    )
    head = ("tokens/s", "ranks", "group", "one rank", "ratio", "lost in collectives", "in the rest")
    rows = [
        (
            r.name,
            f"{r.ranks}",
            f"{r.group:.1f}",
            f"{r.one_rank:.1f}",
            f"{r.ratio:.2f}",
            f"{r.collectives:.2f}",
            f"{r.rest:.2f}",
        )
        for r in report.rows
    ]
    return f"{title}\n\n{table(head, rows)}"


def perf_section(rows: list[Row]) -> str:
    """perf_analyzer's report."""
    head = ("model", "streams", "requests/s", "responses/s", "latency p50, ms", "latency p99, ms")
    cells = [
        (
            f"`{r.model}`",
            f"{r.concurrency}",
            f"{r.requests_per_s:.2f}",
            f"{r.responses_per_s:.1f}",
            f"{r.latency_p50_ms:.0f}",
            f"{r.latency_p99_ms:.0f}",
        )
        for r in rows
    ]
    return f"**perf_analyzer**, gRPC streaming, {OUTPUT_TOKENS} tokens an answer (`make perf`)\n\n{table(head, cells)}"


def soak_section(rounds: list[Round]) -> str:
    """What became of thousands of requests, a tenth of them cancelled."""
    head = ("requests", "at once", "requests/s", "outcomes", "left over", f"memory in {OUTLOOK} times the requests")
    rows = [
        (
            f"{r.requests:,}",
            f"{r.at_once}",
            f"{r.requests / r.seconds:.1f}",
            ", ".join(f"{count:,} {outcome}" for outcome, count in r.outcomes.items()),
            f"{sum(map(sum, r.left.values()))}",
            f"{max((m.outlook for m in r.memory.values() if m), default=math.nan):+.1%}",
        )
        for r in rounds
        if not r.warms_up
    ]
    return f"**Soak** (`python loadtest/soak.py`)\n\n{table(head, rows)}"


def simulation_section(runs: list[Run]) -> str:
    """Policy kv beside round_robin, on the simulated clock."""
    of = {(r.workers, r.load, r.results.policy): r for r in runs}
    scenarios = [(w, x) for w, x, policy in of if policy == "kv" and (w, x, "round_robin") in of]
    head = (
        "workers, load",
        "TTFT mean, s",
        "ratio",
        "TTFT p99, s",
        "inter-token mean, ms",
        "p99, ms",
        "hits",
        "one cache of all memory",
        "of prefill's",
        "balance",
        "failed",
    )
    rows = []
    for workers, load in scenarios:
        run = of[workers, load, "kv"]
        kv, other = run.results, of[workers, load, "round_robin"].results
        rows.append(
            (
                f"{workers}, {load:g}",
                f"{kv.ttft.mean:.2f} / {other.ttft.mean:.2f}",
                f"{other.ttft.mean / kv.ttft.mean:.1f}",
                f"{kv.ttft.p99:.1f} / {other.ttft.p99:.1f}",
                f"{1e3 * kv.inter_token.mean:.1f} / {1e3 * other.inter_token.mean:.1f}",
                f"{1e3 * kv.inter_token.p99:.0f} / {1e3 * other.inter_token.p99:.0f}",
                f"{kv.hit_rate:.3f} / {other.hit_rate:.3f}",
                f"{run.oracle_hit_rate:.3f}",
                f"{run.prefill_oracle_hit_rate:.3f}",
                f"{kv.balance:.2f} / {other.balance:.2f}",
                f"{sum(kv.failed.values())} / {sum(other.failed.values())}",
            )
        )
    return f"**Routing on the simulated clock**, `kv` / `round_robin` (`make simulate`)\n\n{table(head, rows)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def main(
    home: Annotated[Path, typer.Option(help="Where the benchmarks left their reports.")] = ROOT / ".tandem",
    readme: Annotated[Path, typer.Option(help="The file with the marks.")] = ROOT / "README.md",
) -> None:
    """Write the tables between the marks."""
    bench = read_bench(home / "bench.json")
    sections = [
        engine_section(bench.engine),
        stack_section(bench.stack),
        kv_section(bench.kv),
        group_section(bench.group),
    ]
    if (perf := home / "perf" / "perf.json").is_file():
        sections.append(perf_section(msgspec.json.decode(perf.read_bytes(), type=list[Row])))
    if (soak := home / "soak.json").is_file():
        sections.append(soak_section(msgspec.json.decode(soak.read_bytes(), type=list[Round])))
    if (simulation := home / "simulation.json").is_file():
        sections.append(simulation_section(msgspec.json.decode(simulation.read_bytes(), type=list[Run])))
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the marks {BEGIN} and {END}")
    readme.write_text("\n\n".join([before + BEGIN, *sections, END + after]))
    print(f"written: {readme}")


if __name__ == "__main__":
    typer.run(main)
