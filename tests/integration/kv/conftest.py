"""Workers that end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kv_ranks import LOOPBACK

from tests.integration.kv.side import Workers


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv(*LOOPBACK)
    workers = Workers()
    yield workers
    workers.end()
