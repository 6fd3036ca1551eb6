"""The classes that settings and requests are made of, from the description, with the checks of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorrt_llm._described import _Keeper, make_class, what_is_wrong

_GUIDES = ("json", "regex", "grammar", "json_object", "structural_tag")
_RANGED = ("top_p", "top_k", "temperature", "truncate_prompt_tokens")


class Misuse(AssertionError):
    """The real library would go on, and do something else than was meant. Only the fake says so."""


class _Sampling(_Keeper):
    def _after_init(self) -> None:
        values: Any = self
        values.best_of = values.n if values.best_of is None else values.best_of
        if values.best_of < values.n:
            raise ValueError(f"best_of ({values.best_of}) cannot be less than n ({values.n})")
        for name in _RANGED:
            if why := what_is_wrong(self._described.fields[name], getattr(values, name)):
                raise ValueError(f"require {name} in its range: {why}")
        if values.guided_decoding is not None:
            guides = sum(bool(getattr(values.guided_decoding, each)) for each in _GUIDES)
            if guides > 1:
                raise ValueError(f"Only one guide can be used for a request, but got {guides}.")
        object.__setattr__(self, "_request", None)

    def bind(self, client_id: int) -> None:
        """Note whose it is: the library writes into it, so no two requests may share one."""
        if self._request is not None:  # type: ignore[has-type]
            raise Misuse(f"request {client_id} was given the SamplingParams of request {self._request}: copy them")
        object.__setattr__(self, "_request", client_id)


class _Adapter(_Keeper):
    def _after_init(self) -> None:
        path: Any = vars(self)["lora_path"]
        if not Path(path).exists():
            raise ValueError(f"lora_path ({path}) does not exist.")


class _Disaggregated(_Keeper):
    def _after_init(self) -> None:
        values: Any = self
        if values.request_type is not None:
            values.request_type = values.request_type.lower()
            allowed = self._described.fields["request_type"].one_of or []
            if values.request_type not in allowed:
                raise ValueError(
                    f"Unknown request type: {values.request_type}. Must be context_only, generation_only or "
                    "context_and_generation"
                )


KvCacheConfig = make_class("KvCacheConfig")
CacheTransceiverConfig = make_class("CacheTransceiverConfig")
SchedulerConfig = make_class("SchedulerConfig")
CudaGraphConfig = make_class("CudaGraphConfig")
LoraConfig = make_class("LoraConfig")
GuidedDecodingParams = make_class("GuidedDecodingParams")
SamplingParams = make_class("SamplingParams", _Sampling)
DisaggregatedParams = make_class("DisaggregatedParams", _Disaggregated)
LoRARequest = make_class("LoRARequest", _Adapter)
LlmArgs = make_class("LLM")
