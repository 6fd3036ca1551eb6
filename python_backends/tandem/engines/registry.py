"""Finds an engine by name, and imports it only then."""

from __future__ import annotations

import importlib
from typing import cast

from tandem.engines.base import EngineFactory
from tandem.errors import TandemError

ENGINES = {"torch": "tandem.engines.torch.engine:create"}
"""Name in the deployment file to ``module:function`` of its ``EngineFactory``."""


def find_engine(name: str) -> EngineFactory:
    """The factory called ``name``, or at ``module:function`` if the name has that form.

    Raises:
        TandemError: ``invalid_request``; there is none, or a package it needs is missing.
    """
    place = ENGINES.get(name, name)
    module_name, _, function_name = place.partition(":")
    if not function_name:
        known = ", ".join(sorted(ENGINES))
        raise TandemError(
            "invalid_request", f"worker.engine: {name!r} is not an engine; give one of {known}, or module:function"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TandemError(
            "invalid_request",
            f"worker.engine: {name!r} cannot be loaded: {error}; install what it needs, or see `tandem doctor`",
        ) from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise TandemError("invalid_request", f"worker.engine: module {module_name} has no function {function_name!r}")
    return cast(EngineFactory, factory)
