"""What tests of the orchestrator share."""

from __future__ import annotations

import pytest

from tandem.text.codec import TextCodec
from tests.unit.text.models import write_model


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """Of a tiny model."""
    return TextCodec(write_model(tmp_path_factory.mktemp("model")))
