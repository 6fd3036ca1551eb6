"""What watches a deployment: dashboard, rules and the documentation speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promtool import find_promtool
from watch import metrics_table

WATCH = Path(__file__).parents[3] / "deployments" / "watch"
RULES, DASHBOARD = WATCH / "rules.yml", WATCH / "dashboards" / "tandem.json"
_NAME = re.compile(r"\btandem_\w+")


def known() -> set[str]:
    """All names that queries may use."""
    return {sample.name for family in metrics_table.families() for sample in family.samples}


def names_in(text: str) -> set[str]:
    return set(_NAME.findall(text))


def panels() -> list[dict[str, Any]]:
    board = json.loads(DASHBOARD.read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_documentation_has_every_metric() -> None:
    text = metrics_table.FILE.read_text()
    assert text == metrics_table.written(text), "python build/watch/metrics_table.py writes the table anew"
    shown = {metrics_table.shown_as(family) for family in metrics_table.families()}
    assert names_in(text) <= shown | known()


def test_names_are_what_prometheus_asks_for() -> None:
    for family in metrics_table.families():
        name = metrics_table.shown_as(family)
        assert re.fullmatch(r"tandem_[a-z_]+", name)
        assert name.endswith("_total") == (family.type == "counter")
        if family.type == "histogram":
            assert name.endswith("_seconds")
        assert not re.search(r"_(ms|milliseconds|percent|kib|mib|gib)\b", name)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Grafana's library is written for Python 3.11")
def test_the_dashboard_is_what_its_program_makes() -> None:
    from watch import dashboard

    assert DASHBOARD.read_text() == dashboard.build(), "python build/watch/dashboard.py writes it anew"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(queries) > 30
    assert names_in(" ".join(queries)) <= known()
    for query in queries:
        assert re.search(r'tandem_\w+\{deployment="\$deployment"', query), query


def test_the_dashboard_shows_every_metric() -> None:
    queries = names_in(DASHBOARD.read_text())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in queries}
    assert families == {metrics_table.shown_as(family) for family in metrics_table.families()}


def test_panels_stand_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_rules_ask_for_metrics_that_there_are() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert names_in(" ".join(rule["expr"] for rule in rules)) <= known()
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert names_in(rule["annotations"]["summary"]) <= known()


def test_scrapes_find_the_rules() -> None:
    for file in ("prometheus.yml", "prometheus.local.yml"):
        (path,) = yaml.safe_load((WATCH / file).read_text())["rule_files"]
        assert (WATCH / path).is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", str(RULES)],
        ["check", "config", str(WATCH / "prometheus.yml")],
        ["check", "config", str(WATCH / "prometheus.local.yml")],
        ["test", "rules", str(Path(__file__).with_name("alerts.yml"))],
    ],
    ids=lambda command: " ".join([*command[:2], Path(command[2]).name]),
)
def test_prometheus_takes_rules_and_configurations_and_alerts_fire_when_they_should(command: list[str]) -> None:
    done = subprocess.run([find_promtool(), *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
