"""Libraries that cannot be installed everywhere, as stand-ins. On the path only where a test or a deployment puts them:

PYTHONPATH=tests/fakes      for processes
tests.fakes.use(…)          within one
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parent


def use(monkeypatch: pytest.MonkeyPatch, version: str = "1.2") -> None:
    """Have ``import tensorrt_llm`` find the stand-in, as of this version, until the test's end, and in its processes."""
    monkeypatch.syspath_prepend(str(DIRECTORY))
    monkeypatch.setenv("PYTHONPATH", str(DIRECTORY), prepend=":")
    monkeypatch.setenv("FAKE_TRTLLM_VERSION", version)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        monkeypatch.delitem(sys.modules, name)
