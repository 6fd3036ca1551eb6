"""The public names."""

from tensorrt_llm._llm import LLM
from tensorrt_llm._requests import (
    CacheTransceiverConfig,
    CudaGraphConfig,
    DisaggregatedParams,
    GuidedDecodingParams,
    KvCacheConfig,
    SamplingParams,
    SchedulerConfig,
)
from tensorrt_llm._results import CompletionOutput, RequestError, RequestOutput

__all__ = [
    "LLM",
    "CacheTransceiverConfig",
    "CompletionOutput",
    "CudaGraphConfig",
    "DisaggregatedParams",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
]
