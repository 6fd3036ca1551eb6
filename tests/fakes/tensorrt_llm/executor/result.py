"""What a request gives back."""

from tensorrt_llm._results import CompletionOutput, IterationResult, Logprob

__all__ = ["CompletionOutput", "IterationResult", "Logprob"]
