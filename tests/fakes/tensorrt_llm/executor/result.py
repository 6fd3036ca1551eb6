"""What a request gives back."""

from tensorrt_llm._exports import exports_of

__getattr__ = exports_of("tensorrt_llm.executor.result")
