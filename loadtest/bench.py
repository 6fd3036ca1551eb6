"""The benchmark: ``make bench``. Bare engine beside transformers, whole stack beside the bare engine, KV transfer
beside memcpy, groups of ranks beside one rank; medians and ratios of one run as tables and JSON.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import engine_bench
import group_bench
import kv_bench
import msgspec
import stack_bench
import typer
from rich.console import Console

from tandem.deployment import load_deployment, override

ROOT = Path(__file__).parents[1]


def main(
    threads: Annotated[int, typer.Option(help="CPU threads of every engine, and of transformers.")] = 1,
    repetitions: Annotated[int, typer.Option(help="Measurements per figure.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "bench.json",
) -> None:
    """Run all four benchmarks and print their tables."""
    console = Console()
    local = load_deployment(ROOT / "deployments" / "local.toml")
    deployment = override(local, http_port=0, grpc_port=0, metrics_port=0)
    with console.status("KV transfer beside memcpy"):
        kv = kv_bench.run_kv_bench(repetitions=5 * repetitions)
    console.print(kv_bench.table(kv))
    with console.status("bare engine beside transformers"):
        engine = engine_bench.run_engine_bench(Path(deployment.model.path), threads, repetitions)
    console.print(engine_bench.table(engine))
    with console.status("whole stack beside the bare engine"):
        stack = stack_bench.run_stack_bench(deployment, threads, repetitions)
    console.print(stack_bench.table(stack))
    with console.status("groups of ranks beside one rank"):
        group = group_bench.run_group_bench(repetitions)
    console.print(group_bench.table(group))
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {"engine": asdict(engine), "stack": asdict(stack), "kv": asdict(kv), "group": asdict(group)}
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
