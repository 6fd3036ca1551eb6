"""perf_analyzer's figures, or its own words on why there are none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from perf import PerfError, library_links, read_report, run_perf

HEAD = "Concurrency,Inferences/Second,Response Throughput,Client Send,p50 latency,p90 latency,p95 latency,p99 latency"


def test_a_model_without_figures_fails_with_the_words_of_perf_analyzer(tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(PerfError, match=r"(?s)decode_0, 8 streams: perf_analyzer ended .*[Ff]ailed to connect"):
            run_perf("decode_0", 8, url, [1, 2], tmp_path, library_links(libraries))


def test_the_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "llm.csv"
    assert read_report(report, "llm") == []
    report.write_text(f"{HEAD}\n")
    assert read_report(report, "llm") == []
    report.write_text(f"{HEAD}\n8,12.5,400.1,9,640000,700000,710000,720000\n")
    (row,) = read_report(report, "llm")
    assert (row.model, row.concurrency, row.requests_per_s, row.responses_per_s) == ("llm", 8, 12.5, 400.1)
    assert (row.latency_p50_ms, row.latency_p99_ms) == (640.0, 720.0)
