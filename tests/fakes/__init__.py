"""Libraries that cannot be installed everywhere, as stand-ins. On the path only where a test or a deployment puts them:

PYTHONPATH=tests/fakes      for processes
tests.fakes.use(…)          within one
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parent


def use(monkeypatch: pytest.MonkeyPatch, version: str = "1.2") -> None:
    """Have ``import tensorrt_llm`` find the stand-in, as of this version, until the test ends; its processes, too."""
    monkeypatch.syspath_prepend(str(DIRECTORY))
    monkeypatch.setenv("PYTHONPATH", str(DIRECTORY), prepend=":")
    monkeypatch.setenv("FAKE_TRTLLM_VERSION", version)
    for name in _loaded():
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("tensorrt_llm")
    for name in _loaded():  # taken out and put in again, so that the test's end takes them out
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("tensorrt_llm", "tensorrt_llm_contract")]
