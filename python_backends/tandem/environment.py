"""Variables of the environment in a deployment file: ``${NAME}``, or ``${NAME:-what stands there without it}``.

What is nothing but a variable becomes a list where its value has commas: ``address = "${DECODE}"`` may be several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tandem.errors import TandemError

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def expand(content: Any, environment: Mapping[str, str]) -> Any:
    """``content`` with the variables in all its strings replaced. An empty variable counts as one that is not set.

    Raises:
        TandemError: ``invalid_request``: one without a default is not set.
    """

    def value_of(found: re.Match[str]) -> str:
        value = environment.get(found["name"]) or found["default"]
        if value is None:
            raise TandemError("invalid_request", f"{found[0]}: the environment has no variable {found['name']}")
        return value

    if isinstance(content, str):
        value = _VARIABLE.sub(value_of, content)
        if _VARIABLE.fullmatch(content) and "," in value:
            return [part.strip() for part in value.split(",")]
        return value
    if isinstance(content, dict):
        return {name: expand(value, environment) for name, value in content.items()}
    if isinstance(content, list):
        return [expand(value, environment) for value in content]
    return content
