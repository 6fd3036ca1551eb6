"""Variables of the environment in a deployment file."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.environment import expand
from tandem.errors import TandemError

ENVIRONMENT = {"HOST": "10.0.0.2", "MANY": "a:1, b:2", "EMPTY": ""}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("${HOST}:8001", "10.0.0.2:8001"),
        ("${NONE:-decode:8001}", "decode:8001"),
        ("${EMPTY:-decode:8001}", "decode:8001"),
        ("${MANY}", ["a:1", "b:2"]),
        ("at ${MANY}", "at a:1, b:2"),
        ("a, b", "a, b"),
        ("$HOST {HOST} $${}", "$HOST {HOST} $${}"),
        ({"a": [1, {"b": "${HOST}"}], "c": True}, {"a": [1, {"b": "10.0.0.2"}], "c": True}),
    ],
)
def test_strings_get_what_the_environment_has(content: Any, expected: Any) -> None:
    assert expand(content, ENVIRONMENT) == expected


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(TandemError, match="no variable NONE"):
        expand({"address": "${NONE}"}, ENVIRONMENT)
