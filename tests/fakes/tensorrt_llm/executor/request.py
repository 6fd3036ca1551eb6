"""Of a request."""

from tensorrt_llm._requests import LoRARequest

__all__ = ["LoRARequest"]
