"""Engines by name."""

from __future__ import annotations

import pytest

from tandem.engines.registry import ENGINES, find_engine
from tandem.errors import TandemError


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_registered_engine_is_there(name: str) -> None:
    assert callable(find_engine(name))


def test_module_and_function() -> None:
    from tests.unit.engines.echo_engine import create

    assert find_engine("tests.unit.engines.echo_engine:create") is create


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not an engine; give one of"),
        ("warp", "'warp' is not an engine; give one of sim, tensorrt_llm, torch"),
        ("nowhere:create", r"cannot be loaded: No module named 'nowhere'.*tandem doctor"),
        ("tests.unit.engines.echo_engine:nothing", "has no function 'nothing'"),
        ("tests.unit.engines.echo_engine:os", "has no function 'os'"),
    ],
)
def test_what_is_not_an_engine_is_named(name: str, message: str) -> None:
    with pytest.raises(TandemError, match=message) as error:
        find_engine(name)
    assert error.value.code == "invalid_request"
    assert error.value.message.startswith("worker.engine: ")
