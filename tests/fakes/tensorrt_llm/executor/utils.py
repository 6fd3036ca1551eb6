"""Errors."""

from tensorrt_llm._results import RequestError

__all__ = ["RequestError"]
