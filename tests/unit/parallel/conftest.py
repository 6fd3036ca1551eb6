"""Hosts and implementations of MPI for tests of engine groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts import Hosts, make_hosts


@pytest.fixture(scope="package")
def hosts() -> Iterator[Hosts]:
    with make_hosts(2) as hosts:
        yield hosts


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
