"""Finds an engine by name, and imports it only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from tandem.engines.base import EngineFactory, EngineFollower
from tandem.errors import TandemError

ENGINES = {
    "sim": "tandem.engines.sim.engine:create",
    "tensorrt_llm": "tandem.engines.tensorrt_llm.engine:create",
    "torch": "tandem.engines.torch.engine:create",
}
"""Name in the deployment file to ``module:function`` of its ``EngineFactory``."""
FOLLOWERS = {"torch": "tandem.engines.torch.follower:serve"}
"""Likewise of its ``EngineFollower``. That of an engine given as ``module:function`` is ``module:serve``."""


def find_engine(name: str) -> EngineFactory:
    """The factory called ``name``, or at ``module:function`` if the name has that form.

    Raises:
        TandemError: ``invalid_request``; there is none, or a package it needs is missing.
    """
    return cast(EngineFactory, _find(name, ENGINES.get(name, name)))


def find_follower(name: str) -> EngineFollower:
    """What the ranks of an engine group run, save the leader.

    Raises:
        TandemError: ``invalid_request``; there is none, or a package it needs is missing.
    """
    module, colon, _ = name.partition(":")
    return cast(EngineFollower, _find(name, FOLLOWERS.get(name, f"{module}:serve" if colon else name)))


def _find(name: str, place: str) -> Callable[..., Any]:
    """The function at ``place``, ``module:function``, of the engine ``name``."""
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
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TandemError("invalid_request", f"worker.engine: module {module_name} has no function {function_name!r}")
    return cast(Callable[..., Any], function)
