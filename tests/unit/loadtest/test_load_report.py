"""The report of rounds: what counts, its figures, its page, and that two of them can be compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from compare import read_figures
from live.load_report import LoadReport, Round, Settings, figures_of, within
from live.resources import Sample, Use, cpu_between, role_of
from live.stats import Slo, figures
from load_report import to_html

from tests.unit.loadtest.records import record

SLO = Slo(0.5, 0.1)


def _report() -> LoadReport:
    rounds = []
    for number in range(2):
        records = [record(), record(finish="", error="[overloaded] <b>", ttft=None, gaps=[], tokens=0)]
        found = figures(records, SLO, 1.0 + number)
        watched = {"tritonserver": [Sample(0.5, 1.5, 100.0), Sample(1.0, 0.5, 120.0)]}
        rounds.append(Round(figures=found, kinds={"chat": found}, ttft=[0.1], resources=watched))
    settings = Settings(
        deployment="local", protocol="http", users=2, kinds=[], seconds=1.0, answer_tokens=8, slo=SLO, machine="this"
    )
    return LoadReport(title="load report", settings=settings, rounds=rounds, figures=figures_of(rounds))


def test_figures_have_a_value_for_each_round() -> None:
    found = {figure.name: figure.values for figure in _report().figures}
    assert found["requests/s"] == [1.0, 0.5]
    assert found["errors"] == [50.0, 50.0]
    assert found["CPU"] == [1.0, 1.0]
    assert found["memory, at most"] == [120.0, 120.0]


def test_the_page_holds_everything_and_needs_nothing() -> None:
    page = to_html(_report())
    assert page.count("<svg") == 3
    assert "TTFT ≤ 500 ms and inter-token p99 ≤ 100 ms" in page
    assert "1 whole answer, 0 left, 1 overloaded" in page
    assert 'src="' not in page


def test_a_written_report_can_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode(_report()))
    assert read_figures(path).figures == _report().figures
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"a\.json: no report with figures: .*title"):
        read_figures(path)


def test_a_round_begins_with_its_first_request_and_ends_in_time() -> None:
    records = [record(due=103.0, sent=103.0, ended=109.0), record(due=100.0, sent=100.0), record(sent=110.5)]
    assert [(r.sent, r.ended) for r in within(records, 10.0)] == [(3.0, 9.0), (0.0, pytest.approx(-98.8))]
    assert within([], 10.0) == []


def test_processes_are_told_apart_by_what_they_are_for() -> None:
    assert role_of(["stub", "/x/models/llm/1/model.py", "…"], "triton_python_b") == "stub of llm"
    assert role_of(["python", "-m", "tandem.engines.server", "--worker", "decode_0"], "python") == "engine decode_0"
    assert role_of(["/opt/tritonserver"], "tritonserver") == "tritonserver"
    before, after = {"a": Use(1.0, 0.0), "gone": Use(1.0, 0.0)}, {"a": Use(1.5, 0.0), "new": Use(9.0, 0.0)}
    assert cpu_between(before, after) == {"a": 0.5}
