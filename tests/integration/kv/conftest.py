"""Workers that end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.kv.side import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.end()
