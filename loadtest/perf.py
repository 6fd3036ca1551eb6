"""perf_analyzer against every model of a running deployment: ``make perf``.

The binary comes in the platform wheel of ``tritonclient``; the two libraries it wants lie in the embedded server's
wheel under other names. Starts its own server on free ports, streams against ``llm``, ``ensemble`` and both stages,
prints one table and writes ``perf.json`` and the raw reports.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tandem.deployment import load_deployment, override
from tandem.text.codec import TextCodec
from tandem.triton.runtime import find_runtime
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
OUTPUT_TOKENS = 32
PROMPT = "Explain in a few sentences why the sky is blue and why sunsets are red."
STREAMS = (1, 8)
MEASURED_REQUESTS = 48
TIMEOUT_S = 600


@dataclass(frozen=True)
class Row:
    """One line of perf_analyzer's report. Times in ms; a response is one streamed message, about one token."""

    model: str
    concurrency: int
    requests_per_s: float
    responses_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float


class PerfError(Exception):
    """perf_analyzer gave no figures; the text is its own."""


def find_binary() -> Path:
    """``perf_analyzer`` of the installed tritonclient.

    Raises:
        SystemExit: the wheel for this platform carries none.
    """
    binary = Path(sys.executable).parent / "perf_analyzer"
    if not binary.exists():
        raise SystemExit(f"{binary} is missing: tritonclient 2.51.0 carries it for Linux on x86-64 only")
    return binary


def library_links(directory: Path) -> Path:
    """Give the libraries that perf_analyzer wants the names it knows."""
    bundled = [path for folder in find_runtime().libraries for path in folder.iterdir()]
    for wanted in ("libb64.so.0d", "libcudart.so.12"):
        stem = wanted.split(".so")[0]
        found = [path for path in bundled if path.name.split("-")[0].split(".so")[0] == stem]
        if found:
            (directory / wanted).symlink_to(found[0])
    return directory


def write_input(path: Path, model: str, prompt_ids: list[int]) -> None:
    """The request that perf_analyzer repeats."""
    request: dict[str, object] = {"max_tokens": [OUTPUT_TOKENS], "ignore_eos": [True], "stream": [True]}
    if model in ("llm", "ensemble"):
        request["text_input"] = [PROMPT]
    else:
        request["input_ids"] = {"content": prompt_ids, "shape": [len(prompt_ids)]}
    path.write_text(json.dumps({"data": [request]}))


def run_perf(model: str, streams: int, url: str, prompt_ids: list[int], out: Path, libraries: Path) -> Row:
    """One line: a fixed number of requests to one model.

    Raises:
        PerfError: perf_analyzer gave no figures.
    """
    name, what = f"{model}_{streams}", f"{model}, {streams} streams"
    write_input(out / f"{model}_input.json", model, prompt_ids)
    said = call_perf(what, model, name, ["--concurrency-range", str(streams)], url, out, libraries)
    rows = read_report(out / f"{name}.csv", model)
    if [row.concurrency for row in rows] != [streams]:
        raise PerfError(f"{what}: perf_analyzer wrote {len(rows)} lines in place of one; it says:\n{said[-2000:]}")
    return rows[0]


def call_perf(what: str, model: str, name: str, load: list[str], url: str, out: Path, libraries: Path) -> str:
    """Call perf_analyzer on ``model_input.json``; it leaves ``name.csv`` and ``name_profile.json``. Returns its words.

    A fixed number of requests, for with time or count windows perf_analyzer leaves a line out, and ends with status 0,
    unless three windows in a row agree; windows over a few streams that began together do not.

    Raises:
        PerfError: it failed or did not end in time.
    """
    command = [
        str(find_binary()), "-m", model, "-u", url, "-i", "grpc", "--streaming", "--async",
        "--input-data", str(out / f"{model}_input.json"), *load,
        "--request-count", str(MEASURED_REQUESTS), "-f", str(out / f"{name}.csv"),
        "--profile-export-file", str(out / f"{name}_profile.json"),
    ]  # fmt: skip
    environment = os.environ | {"LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PerfError(f"{what}: perf_analyzer did not end within {TIMEOUT_S} s") from error
    said = done.stdout + done.stderr
    (out / f"{name}.txt").write_text(said)
    if done.returncode:
        raise PerfError(f"{what}: perf_analyzer ended with status {done.returncode}; it says:\n{said[-2000:]}")
    return said


def read_report(report: Path, model: str) -> list[Row]:
    """The lines of perf_analyzer's report; none where it wrote none."""
    if not report.exists():
        return []
    with report.open() as lines:
        return [_row(model, line) for line in csv.DictReader(lines)]


def _row(model: str, line: dict[str, str]) -> Row:
    return Row(
        model=model,
        concurrency=int(line["Concurrency"]),
        requests_per_s=float(line["Inferences/Second"]),
        responses_per_s=float(line.get("Response Throughput") or 0.0),
        latency_p50_ms=float(line["p50 latency"]) / 1e3,
        latency_p99_ms=float(line["p99 latency"]) / 1e3,
    )


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"perf_analyzer, gRPC streaming, {OUTPUT_TOKENS} tokens an answer")
    for heading in ("model", "streams", "requests/s", "responses/s", "latency p50 ms", "latency p99 ms"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(
            row.model,
            str(row.concurrency),
            f"{row.requests_per_s:.2f}",
            f"{row.responses_per_s:.1f}",
            f"{row.latency_p50_ms:.0f}",
            f"{row.latency_p99_ms:.0f}",
        )
    console.print(table)


def main() -> None:
    """Start a server, sweep all models, report."""
    console = Console()
    deployment = override(
        load_deployment(ROOT / "deployments" / "local.toml"), http_port=0, grpc_port=0, metrics_port=0
    )
    out = ROOT / ".tandem" / "perf"
    shutil.rmtree(out, ignore_errors=True)  # perf_analyzer refuses to write over an earlier report
    out.mkdir(parents=True)
    prompt_ids = TextCodec(Path(deployment.model.path)).encode(PROMPT)
    rows: list[Row] = []
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory() as links,
        console.status("starting the server") as status,
        TritonServer(deployment, progress=status.update) as server,
    ):
        libraries = library_links(Path(links))
        for model in ("llm", "ensemble", *(worker.name for worker in deployment.worker)):
            for streams in STREAMS:
                status.update(f"perf_analyzer streams against {model}, {streams} at a time")
                try:
                    rows.append(run_perf(model, streams, server.grpc_url, prompt_ids, out, libraries))
                except PerfError as error:
                    failures.append(str(error))
    show(rows, console)
    if failures:
        console.print(*failures, sep="\n\n", markup=False, highlight=False)
        sys.exit(1)
    (out / "perf.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    console.print(f"raw reports: {out.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
