"""Functions that numba compiles when they are imported; the result stays on disk: it takes time once a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[_Function], _Function]:
    """Compile for arguments of these types alone, in numba's words. What a compiled function calls should be in the
    same file: numba looks whether that has changed, and at no other."""
    return njit(signature, error_model="numpy", cache=True)  # type: ignore[no-any-return]
