"""One start of all hosts for all scenarios, and the table of what was done to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.table import Table

from tandem.deployment import Limits
from tests.disruption.cluster import Cluster, make_cluster
from tests.disruption.load import Requests, ask_undisturbed, make_requests
from tests.disruption.scenario import Row

rows: list[Row] = []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("cluster"), Limits()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def requests(cluster: Cluster) -> Requests:
    """What is asked, and the undisturbed answers."""
    return ask_undisturbed(cluster, make_requests())


@pytest.fixture(scope="session")
def summary() -> list[Row]:
    """Takes what happened."""
    return rows


def pytest_terminal_summary() -> None:
    if not rows:
        return
    table = Table(title="disruption: 64 streams all along, every answer the undisturbed one")
    for heading in ("scenario", "injected", "repaired"):
        table.add_column(heading)
    for heading in ("answers", "retried at the other gateway", "slowest stream [s]", "scenario [s]"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=180).print(table)
