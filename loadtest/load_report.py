"""One command, one report: ``make load-report``.

Starts a server on free ports, lets locust's users at it for several rounds, watches its processes, and writes one page
of HTML with its plots inside, and the same as JSON, which ``compare.py`` reads. With ``--http-url`` (``--grpc-url``) a
server that runs already is measured; its processes are then not seen.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jinja2
import msgspec
import typer
from live.load_plots import plots
from live.load_report import LoadReport, Round, Settings, figures_of, outcomes, within
from live.record import Record
from live.record_file import read_records
from live.resources import Processes, Watch
from live.stats import Slo, figures
from rich.console import Console
from rich.table import Table

from tandem.deployment import load_deployment, override
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).parent / "live" / "load_report.html.j2"
STOP_S = 60
"""For running requests to end after a round."""


@dataclass(frozen=True)
class Target:
    """Who is measured."""

    name: str
    http_url: str
    grpc_url: str
    pids: Sequence[int]
    """Processes on this machine that are watched, with all below them."""


@contextmanager
def target(deployment: Path, there: Target | None, console: Console) -> Iterator[Target]:
    """A server that is there, or one of the deployment's, which ends with the block."""
    if there is not None:
        yield there
        return
    found = override(load_deployment(deployment), http_port=0, grpc_port=0, metrics_port=0)
    with console.status("starting the server") as status, TritonServer(found, progress=status.update) as server:
        status.stop()
        yield Target(found.name, server.http_url, server.grpc_url, [server.pid])


def run_users(settings: Settings, at: Target, seconds: float, records: Path) -> list[Record]:
    """Let users at the server for so long; the records of all their requests.

    Raises:
        SystemExit: locust failed; the text is its own.
    """
    locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py")]
    command = [
        *locust, "--headless", "--only-summary", "--host", at.http_url, "-u", str(settings.users),
        "-r", str(max(1, settings.users)), "-t", f"{seconds:g}s", "-s", str(STOP_S), "--exit-code-on-error", "0",
        "--protocol", settings.protocol, "--grpc-url", at.grpc_url or "127.0.0.1:8001",
        "--answer-tokens", str(settings.answer_tokens), "--records", str(records), *settings.kinds,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + STOP_S + 60, check=False)
    if done.returncode or not records.exists():
        raise SystemExit(f"locust ended with status {done.returncode}; it says:\n{done.stderr[-3000:]}")
    return read_records(records)


def run_round(settings: Settings, at: Target, directory: Path) -> Round:
    """One round, watched."""
    records_file = directory / "records.jsonl"
    records_file.unlink(missing_ok=True)
    with Watch(Processes(*at.pids)) as watch:
        found = run_users(settings, at, settings.seconds, records_file)
    records = within(found, settings.seconds)
    if not records:
        raise SystemExit("no request was sent in a round: longer rounds (--seconds) or more users are needed")
    length = max(settings.seconds, max(record.ended for record in records))
    kinds = sorted({record.kind for record in records})
    return Round(
        figures=figures(records, settings.slo, length),
        kinds={kind: figures([r for r in records if r.kind == kind], settings.slo, length) for kind in kinds},
        ttft=[record.ttft for record in records if record.ttft is not None],
        resources=dict(watch.samples),
    )


def to_html(report: LoadReport) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(
        report=report, s=report.settings, plots=plots(report), outcomes=outcomes, number=lambda value: f"{value:,.4g}"
    )


def table(report: LoadReport) -> Table:
    """The figures, for the terminal."""
    shown = Table(title=f"{report.title}: {report.settings.slo.words}")
    for heading in ("", "unit", "median", "± spread"):
        shown.add_column(heading, justify="left" if heading in ("", "unit") else "right")
    for figure in report.figures:
        shown.add_row(figure.name, figure.unit, f"{figure.median:,.4g}", f"{figure.spread:,.3g}")
    return shown


def main(
    deployment: Annotated[Path, typer.Option(help="What to serve.")] = ROOT / "deployments" / "local.toml",
    http_url: Annotated[str, typer.Option(help="A server that runs, in place of one of our own.")] = "",
    grpc_url: Annotated[str, typer.Option(help="The same server's host:port, for --protocol grpc.")] = "",
    pid: Annotated[list[int] | None, typer.Option(help="Its processes, as far as they are on this machine.")] = None,
    name: Annotated[str, typer.Option(help="What it is called in the report.  [default: its address]")] = "",
    rounds: Annotated[int, typer.Option(help="After one that warms up; 4 or more tell differences.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of a round.")] = 30.0,
    users: Annotated[int, typer.Option(help="At once.")] = 12,
    kind: Annotated[list[str] | None, typer.Option(help="Class of users, as ChatUser.  [default: all]")] = None,
    protocol: Annotated[str, typer.Option(help="http or grpc.")] = "http",
    answer_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 24,
    slo_ttft_ms: Annotated[float, typer.Option(help="The SLO for the time to first token.")] = 500.0,
    slo_inter_token_ms: Annotated[float, typer.Option(help="The SLO for the p99 of a request's token gaps.")] = 100.0,
    out: Annotated[Path, typer.Option(help="Where to write; .html and .json.")] = ROOT / ".tandem" / "load_report.html",
) -> None:
    """Measure, print, write."""
    console = Console(width=max(110, Console().width))
    slo = Slo(1e-3 * slo_ttft_ms, 1e-3 * slo_inter_token_ms)
    there = Target(name or http_url, http_url, grpc_url, pid or []) if http_url else None
    with target(deployment, there, console) as at, tempfile.TemporaryDirectory() as directory:
        settings = Settings(
            deployment=at.name,
            protocol=protocol,
            users=users,
            kinds=kind or [],
            seconds=seconds,
            answer_tokens=answer_tokens,
            slo=slo,
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
        )
        done = []
        for number in range(rounds + 1):
            with console.status(f"round {number} of {rounds}" if number else "a round that warms up"):
                done.append(run_round(settings, at, Path(directory)))
    report = LoadReport(title="load report", settings=settings, rounds=done[1:], figures=figures_of(done[1:]))
    console.print(table(report))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_html(report))
    out.with_suffix(".json").write_bytes(msgspec.json.encode(report))
    console.print(f"written: {out} and {out.with_suffix('.json').name}")


if __name__ == "__main__":
    typer.run(main)
