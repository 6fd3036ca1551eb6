"""perf_analyzer over concurrency and over request rate, for ``llm``, prefill and decode: ``make perf-sweep``.

Starts its own server on free ports. The raw times of all responses also tell time to first token and inter-token time,
which perf_analyzer's own report lacks. Prints one table, writes ``.tandem/perf_sweep/sweep.json`` and its picture.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib as mpl
import msgspec
import typer
from live.stats import Times, summarise
from matplotlib.figure import Figure
from perf import OUTPUT_TOKENS, PROMPT, PerfError, call_perf, library_links, write_input
from rich.console import Console
from rich.table import Table
from style import BLUE, GREY, ORANGE, STYLE

from tandem.deployment import load_deployment, override
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
OUT = ROOT / ".tandem" / "perf_sweep"
ATTEMPTS = 2
FLAGS = {"concurrency": "--concurrency-range", "rate": "--request-rate-range"}
Mode = Literal["concurrency", "rate"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one level of load. Times in seconds."""

    model: str
    mode: Mode
    level: float
    """Requests at once, or sent a second (evenly spaced)."""
    requests: int
    requests_per_s: float
    responses_per_s: float
    ttft: Times
    inter_token: Times
    """Between responses, each of which is about one token."""
    latency: Times


class _Request(msgspec.Struct, frozen=True):
    timestamp: int
    response_timestamps: list[int]


class _Experiment(msgspec.Struct, frozen=True):
    requests: list[_Request]


class _Profile(msgspec.Struct, frozen=True):
    """What of perf_analyzer's profile export is read. Nanoseconds."""

    experiments: list[_Experiment]


def read_profile(data: bytes, model: str, mode: Mode, level: float) -> Point:
    """One point from perf_analyzer's profile export.

    Raises:
        PerfError: no request in it was answered.
    """
    profile = msgspec.json.decode(data, type=_Profile)
    answered = [r for experiment in profile.experiments for r in experiment.requests if r.response_timestamps]
    if not answered:
        raise PerfError(f"{model}, {mode} {level:g}: no request was answered")
    began = min(r.timestamp for r in answered)
    seconds = (max(r.response_timestamps[-1] for r in answered) - began) / 1e9
    return Point(
        model=model,
        mode=mode,
        level=level,
        requests=len(answered),
        requests_per_s=len(answered) / seconds,
        responses_per_s=sum(len(r.response_timestamps) for r in answered) / seconds,
        ttft=summarise((r.response_timestamps[0] - r.timestamp) / 1e9 for r in answered),
        inter_token=summarise(gap for r in answered for gap in _gaps(r.response_timestamps)),
        latency=summarise((r.response_timestamps[-1] - r.timestamp) / 1e9 for r in answered),
    )


def measure(model: str, mode: Mode, level: float, url: str, libraries: Path) -> Point:
    """One point. perf_analyzer, which ends well all the same, now and then leaves its export empty: then once more.

    Raises:
        PerfError: there are no figures.
    """
    run = f"{model}_{mode}_{level:g}"
    for _ in range(ATTEMPTS):
        for old in OUT.glob(f"{run}[._]*"):
            old.unlink()
        call_perf(f"{model}, {mode} {level:g}", model, run, [FLAGS[mode], f"{level:g}"], url, OUT, libraries)
        data = (OUT / f"{run}_profile.json").read_bytes()
        if data:
            return read_profile(data, model, mode, level)
    raise PerfError(f"{model}, {mode} {level:g}: perf_analyzer left an empty export {ATTEMPTS} times")


def _gaps(times: list[int]) -> list[float]:
    return [(late - early) / 1e9 for early, late in pairwise(times)]


def table(points: list[Point]) -> Table:
    """All points, for the terminal."""
    shown = Table(title=f"perf_analyzer, gRPC streaming, {OUTPUT_TOKENS} tokens an answer; times in ms")
    shown.add_column("model")
    for heading in ("at once", "sent/s", "requests/s", "responses/s", "TTFT p50", "p99"):
        shown.add_column(heading, justify="right")
    for heading in ("inter-token p50", "p99", "latency p50", "p99"):
        shown.add_column(heading, justify="right")
    for p in points:
        times = (p.ttft.p50, p.ttft.p99, p.inter_token.p50, p.inter_token.p99, p.latency.p50, p.latency.p99)
        shown.add_row(
            p.model,
            f"{p.level:g}" if p.mode == "concurrency" else "",
            f"{p.level:g}" if p.mode == "rate" else "",
            f"{p.requests_per_s:.2f}",
            f"{p.responses_per_s:.1f}",
            *(f"{1e3 * value:.1f}" for value in times),
        )
    return shown


def draw(points: list[Point], path: Path) -> None:
    """TTFT and throughput over each kind of load."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.6), layout="constrained", facecolor="white")
        for column, mode in zip(figure.subplots(2, 2).T, FLAGS, strict=True):
            _draw_one(column[0], points, mode, "requests/s", lambda point: point.requests_per_s)
            _draw_one(column[1], points, mode, "TTFT p50, ms", lambda point: 1e3 * point.ttft.p50)
            column[1].set_xlabel("requests at once" if mode == "concurrency" else "requests sent a second")
        figure.savefig(path, metadata={"Date": None})


def _draw_one(axes: Any, points: list[Point], mode: str, label: str, height: Any) -> None:
    for name, color in zip(sorted({p.model for p in points}), (ORANGE, BLUE, GREY), strict=False):
        found = [p for p in points if p.model == name and p.mode == mode]
        axes.plot([p.level for p in found], [height(p) for p in found], "o-", color=color, label=name)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend()


def main(
    deployment: Annotated[Path, typer.Option(help="What to serve.")] = ROOT / "deployments" / "local.toml",
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests at once.  [default: 1 2 4 8 16]")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests sent a second.  [default: 1 2 4 8]")] = None,
    model: Annotated[list[str] | None, typer.Option(help="[default: llm, the first worker of each stage]")] = None,
) -> None:
    """Start a server, sweep, report; exit status 1 where a point is missing."""
    console = Console(width=max(120, Console().width))
    found = override(load_deployment(deployment), http_port=0, grpc_port=0, metrics_port=0)
    models = model or ["llm", found.workers("prefill")[0].name, found.workers("decode")[0].name]
    levels: list[tuple[Mode, float]] = [
        *(("concurrency", float(n)) for n in concurrency or (1, 2, 4, 8, 16)),
        *(("rate", n) for n in rate or (1, 2, 4, 8)),
    ]
    shutil.rmtree(OUT, ignore_errors=True)  # perf_analyzer refuses to write over an earlier report
    OUT.mkdir(parents=True)
    prompt_ids = TextCodec(Path(found.model.path)).encode(PROMPT)
    points, failures = list[Point](), list[str]()
    with (
        tempfile.TemporaryDirectory() as links,
        console.status("starting the server") as status,
        TritonServer(found, progress=status.update) as server,
    ):
        libraries = library_links(Path(links))
        for name in models:
            write_input(OUT / f"{name}_input.json", name, prompt_ids)
            for mode, level in levels:
                status.update(f"perf_analyzer: {name}, {mode} {level:g}")
                try:
                    points.append(measure(name, mode, level, server.grpc_url, libraries))
                except PerfError as error:
                    failures.append(str(error))
    console.print(table(points))
    (OUT / "sweep.json").write_bytes(msgspec.json.format(msgspec.json.encode(points), indent=2))
    draw(points, OUT / "sweep.svg")
    console.print(f"written: {OUT}/sweep.json, sweep.svg and the raw reports")
    if failures:
        console.print(*failures, sep="\n\n", markup=False, highlight=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
