"""Of a request."""

from tensorrt_llm._requests import GuidedDecodingParams, SamplingParams

__all__ = ["GuidedDecodingParams", "SamplingParams"]
