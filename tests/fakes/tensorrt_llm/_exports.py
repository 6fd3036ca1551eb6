"""Which classes a module has, by the description and the version that is set."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tensorrt_llm._settings import version
from tensorrt_llm_contract import read_contract

_MADE_IN = ("_requests", "_results", "_llm")


def exports_of(module: str) -> Callable[[str], Any]:
    """A module's ``__getattr__``: its classes, as of the version."""

    def find(name: str) -> Any:
        described = read_contract().get(name)
        if described is not None and version() in described.places().get(module, ()):
            for made_in in _MADE_IN:
                found = getattr(importlib.import_module(f"tensorrt_llm.{made_in}"), name, None)
                if found is not None:
                    return found
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
