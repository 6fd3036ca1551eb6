"""Settings of adapters."""

from tensorrt_llm._requests import LoraConfig

__all__ = ["LoraConfig"]
