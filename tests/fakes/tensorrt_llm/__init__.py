"""A stand-in for NVIDIA's TensorRT-LLM, for tests: it takes what the real one takes, and behaves as its sources say.

It computes nothing. Its classes come from the description in ``tensorrt_llm_contract``; what it does is told in
``docs/tensorrt_llm.md``, with where that was read. Put ``tests/fakes`` on the path to have it.
"""

from typing import Any

from tensorrt_llm._exports import exports_of
from tensorrt_llm._settings import VERSION_NUMBERS, version


def __getattr__(name: str) -> Any:
    return VERSION_NUMBERS[version()] if name == "__version__" else exports_of("tensorrt_llm")(name)
