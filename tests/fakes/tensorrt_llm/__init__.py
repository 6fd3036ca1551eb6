"""A stand-in for NVIDIA's TensorRT-LLM, for tests: it takes what the real one takes, and behaves as its sources say.

It computes nothing. Its classes come from the description in ``tensorrt_llm_contract``; what it does is told in
``docs/tensorrt_llm.md``, with where that was read. Put ``tests/fakes`` on the path to have it.
"""

from tensorrt_llm._llm import LLM
from tensorrt_llm._requests import DisaggregatedParams, SamplingParams
from tensorrt_llm._settings import VERSION_NUMBERS, version

__all__ = ["LLM", "DisaggregatedParams", "SamplingParams"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        return VERSION_NUMBERS[version()]
    raise AttributeError(f"module 'tensorrt_llm' has no attribute '{name}'")
