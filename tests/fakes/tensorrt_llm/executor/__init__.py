"""Names that are not in ``llmapi``."""

from tensorrt_llm._requests import LoRARequest
from tensorrt_llm._results import CompletionOutput, IterationResult, RequestError

__all__ = ["CompletionOutput", "IterationResult", "LoRARequest", "RequestError"]
