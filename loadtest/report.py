"""The measured figures of the README: ``python loadtest/report.py`` writes them between its ``figures`` marks.

Reads what they left in ``.tandem``; every table names the command that measures it, and is left out without its file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from conversations import ConversationsReport
from engine_bench import EngineBenchReport
from group_bench import GroupBenchReport
from interference import InterferenceReport
from kv_bench import KvBenchReport, KvBenchRow
from live.replay_report import REFERENCE_MS, ReplayReport
from live.rounds import FigureFile
from memory import OUTLOOK
from overload import Phase, percentile
from perf import OUTPUT_TOKENS, Row
from router_bench import RouterBenchReport
from simulate import Run
from soak import Round
from stack_bench import StackBenchReport

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


OVERHEAD_ROWS = ("request p50", "requests/s", "tokens/s")
"""What of the many figures of an overhead run is shown: these beginnings, and the CPU seconds of all processes."""


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
        "held by anyone",
        "one cache of their size",
        "of all memory",
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
                f"{kv.held_rate:.3f} / {other.held_rate:.3f}",
                f"{kv.shared_rate:.3f} / {other.shared_rate:.3f}",
                f"{run.oracle_hit_rate:.3f}",
                f"{kv.balance:.2f} / {other.balance:.2f}",
                f"{sum(kv.failed.values())} / {sum(other.failed.values())}",
            )
        )
    return f"**Routing on the simulated clock**, `kv` / `round_robin` (`make simulate`)\n\n{table(head, rows)}"


def router_section(report: RouterBenchReport) -> str:
    """Decisions and block events a second."""
    rows = [
        (f"{r.workers}", f"{r.decisions_per_s:,.0f}", f"{r.decision_us:.0f}", f"{r.events_per_s:,.0f}")
        for r in report.rows
    ]
    title = (
        f"**The router alone** on one core, policy `{report.policy}`, {report.blocks:,} blocks indexed "
        "(`make bench-router`)"
    )
    return f"{title}\n\n{table(('workers', 'decisions/s', 'µs each', 'block events/s'), rows)}"


def replay_section(report: ReplayReport) -> str:
    """Policies on a live server with simulated workers."""
    settings = report.settings
    title = (
        f"**The conversation trace in real time**, {settings.requests} requests {settings.speed:g} times as fast on "
        f"{settings.prefill_workers} + {settings.decode_workers} live workers with engine `sim`; reference: "
        f"{report.reference} (`make replay`)"
    )
    head = "policy", "TTFT mean, ms", "p99", "reference mean", "p99", "inter-token p99, ms", "hits", "balance", "failed"
    rows = []
    for policy in report.policies:
        reference = [f"{value:,.0f}" for value in REFERENCE_MS.get(policy.name, ())] or ["", ""]
        rows.append(
            (
                f"`{policy.name}`",
                f"{policy.median('TTFT mean'):,.0f}",
                f"{policy.median('TTFT p99'):,.0f}",
                *reference,
                f"{policy.median('inter-token p99'):.0f}",
                f"{policy.median('hit rate'):.3f}",
                f"{policy.median('balance'):.2f}",
                f"{policy.median('failed'):.0f}",
            )
        )
    return f"{title}\n\n{table(head, rows)}"


def overhead_section(report: FigureFile) -> str:
    """The path of a request where engines take no time."""
    title = (
        "**The path alone**: one prefill and one decode worker whose engines take no time, over HTTP; reference: "
        "Dynamo 1.6.1 with its mocker, on a machine of two cores too (`make overhead`)"
    )
    rows = [
        (
            f"{f.name}, {f.unit}",
            f"{f.median:,.1f}",
            f"{f.spread:,.1f}",
            "" if f.reference is None else f"{f.reference:,.0f}",
        )
        for f in report.figures
        if f.name.startswith(OVERHEAD_ROWS) or f.name.endswith(", all")
    ]
    return f"{title}\n\n{table(('', 'median', '± spread', 'reference'), rows)}"


def interference_section(report: InterferenceReport) -> str:
    """Running answers beside long prompts."""
    plan = report.plan
    title = (
        f"**Long prompts beside running answers**, {plan.prompts} prompts of {plan.prompt_tokens:,} tokens, "
        f"{plan.running} answers, {plan.threads} threads in all (`python loadtest/interference.py`)"
    )
    head = "ms between tokens", "p50", "p99", "most", "p50 in quiet", "TTFT of the prompts, ms"
    rows = [(r.name, *(f"{x:,.0f}" for x in (r.p50, r.p99, r.most, r.quiet_p50, r.ttft))) for r in report.rows]
    return f"{title}\n\n{table(head, rows)}"


def conversations_section(report: ConversationsReport) -> str:
    """The second turn of conversations."""
    title = (
        f"**The next turn of a conversation**, with `lending` / without, medians of {report.conversations} "
        "(`python loadtest/conversations.py`)"
    )
    head = "answer, tokens", "next prompt, tokens", "of it not computed", "TTFT, ms", "ratio"
    rows = [
        (
            f"{r.answer_tokens}",
            f"{r.prompt_tokens}",
            f"{r.cached_lending:.0f} / {r.cached_alone:.0f}",
            f"{r.ttft_lending_ms:.0f} / {r.ttft_alone_ms:.0f}",
            f"{r.ttft_lending_ms / r.ttft_alone_ms:.2f}",
        )
        for r in report.rows
    ]
    return f"{title}\n\n{table(head, rows)}"


def overload_section(phases: list[Phase]) -> str:
    """Ten times what the workers can do."""
    peak = max(phase.goodput for phase in phases)
    head = (
        "load",
        "asked/s",
        "whole answers/s",
        "of the peak",
        "TTFT p50 / p99, ms",
        "refused",
        "refused after p50 / p99, ms",
    )
    rows = [
        (
            phase.name,
            f"{phase.done / phase.seconds:.1f}",
            f"{phase.goodput:.1f}",
            f"{phase.goodput / peak:.2f}",
            f"{percentile(phase.ttft_s, 0.5)} / {percentile(phase.ttft_s, 0.99)}",
            f"{phase.refused:,}",
            f"{percentile(phase.refusal_s, 0.5)} / {percentile(phase.refusal_s, 0.99)}",
        )
        for phase in phases[1:]
    ]
    last = phases[-1].served
    split = f"Two tenants asked as 1 : 10; under the overload {last['light']:,} and {last['heavy']:,} were answered."
    return f"**Overload** (`make overload`)\n\n{table(head, rows)}\n\n{split}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


OTHERS: list[tuple[str, Any, Callable[[Any], str]]] = [
    ("conversations.json", ConversationsReport, conversations_section),
    ("interference.json", InterferenceReport, interference_section),
    ("perf/perf.json", list[Row], perf_section),
    ("overhead.json", FigureFile, overhead_section),
    ("router.json", RouterBenchReport, router_section),
    ("replay.json", ReplayReport, replay_section),
    ("simulation.json", list[Run], simulation_section),
    ("overload.json", list[Phase], overload_section),
    ("soak.json", list[Round], soak_section),
]
"""File, what is in it, and who writes its table; in the order of the page."""


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
    for name, kind, section in OTHERS:
        if (file := home / name).is_file():
            found = msgspec.json.decode(file.read_bytes(), type=kind, dec_hook=lambda _, counts: Counter(counts))
            sections.append(section(found))
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the marks {BEGIN} and {END}")
    readme.write_text("\n\n".join([before + BEGIN, *sections, END + after]))
    print(f"written: {readme}")


if __name__ == "__main__":
    typer.run(main)
