"""Of a request in two phases."""

from tensorrt_llm._requests import DisaggregatedParams

__all__ = ["DisaggregatedParams"]
