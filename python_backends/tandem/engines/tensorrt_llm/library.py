"""The one module that imports TensorRT-LLM. What a version has is found out by looking, never by its number."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tandem.errors import TandemError

NEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "LLM": ("tensorrt_llm", ()),
    "SamplingParams": (
        "tensorrt_llm",
        (
            *("max_tokens", "end_id", "pad_id", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
            *("temperature", "top_k", "top_p", "min_p", "seed", "logprobs", "guided_decoding", "detokenize"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        ),
    ),
    "DisaggregatedParams": (
        "tensorrt_llm.disaggregated_params",
        ("request_type", "first_gen_tokens", "ctx_request_id", "opaque_state", "draft_tokens"),
    ),
    "KvCacheConfig": (
        "tensorrt_llm.llmapi",
        ("enable_block_reuse", "free_gpu_memory_fraction", "max_tokens", "tokens_per_block", "event_buffer_max_size"),
    ),
    "CacheTransceiverConfig": (
        "tensorrt_llm.llmapi",
        ("backend", "max_tokens_in_buffer", "kv_transfer_timeout_ms"),
    ),
    "GuidedDecodingParams": (
        "tensorrt_llm.llmapi",
        ("json", "json_object", "regex", "grammar", "structural_tag"),
    ),
    "LoRARequest": ("tensorrt_llm.executor", ()),
    "RequestError": ("tensorrt_llm.executor", ()),
    "Logprob": ("tensorrt_llm.executor.result", ("logprob", "rank")),
}
"""Class to the module it is imported from, and the fields that must be there."""
CALLED = {
    "generate_async": ("inputs", "sampling_params", "lora_request", "streaming", "disaggregated_params"),
    "get_stats_async": ("timeout",),
    "get_kv_cache_events_async": ("timeout",),
    "shutdown": (),
}
"""Methods of ``LLM`` and their parameters."""
BUILT_ENGINES = "tensorrt_llm._tensorrt_engine"
"""Where ``LLM`` is for directories that ``trtllm-build`` has written, up to 1.2."""
OLDEST = "1.2"


@dataclass(frozen=True)
class Library:
    """The classes, and what they can do beyond what every supported version can."""

    version: str
    classes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.classes[name]
        except KeyError:
            raise AttributeError(name) from None

    def has(self, kind: str, *fields: str) -> bool:
        """Whether a class has all of these fields."""
        return set(fields) <= _fields(self.classes[kind])

    def takes(self, method: str, parameter: str) -> bool:
        """Whether a method of ``LLM`` has this parameter."""
        return parameter in _parameters(getattr(self.classes["LLM"], method))

    @property
    def takes_first_logprobs(self) -> bool:
        """Whether a generation phase can be told the first token's log-probabilities. Where it cannot, it fails when
        some are asked for."""
        return self.has("DisaggregatedParams", "first_gen_log_probs")

    @property
    def extra_disaggregated(self) -> tuple[str, ...]:
        """Fields of ``DisaggregatedParams`` that newer versions have, and want to get back as they gave them."""
        newer = ("disagg_request_id", "ctx_dp_rank", "ctx_info_endpoint")
        return tuple(name for name in newer if self.has("DisaggregatedParams", name))

    @staticmethod
    def is_healthy(llm: Any) -> bool:
        """Whether its executor runs. From 1.3 on a private method tells; before, only requests that fail do."""
        check = getattr(llm, "_check_health", None)
        return bool(check()) if callable(check) else True

    @staticmethod
    def answers_by_call(llm: Any) -> bool:
        """Whether statistics and events are fetched by a call that blocks, as where the executor is reached by RPC;
        else they are in queues, which belong to the event loop of the first request."""
        return getattr(getattr(llm, "_executor", None), "rpc_client", None) is not None


def load_library(*, built: bool = False) -> Library:
    """Import TensorRT-LLM, which takes long the first time, and look whether it has what Tandem needs; ``built``: to
    load an engine that was built, and not a checkpoint.

    Raises:
        TandemError: ``environment``: it is not there, or lacks something; names it.
    """
    try:
        version = str(importlib.import_module("tensorrt_llm").__version__)
    except Exception as error:  # with a driver that does not fit, importing it raises whatever CUDA does
        raise TandemError(
            "environment",
            f"worker.engine: 'tensorrt_llm' cannot be imported: {type(error).__name__}: {error}; it comes with "
            "NVIDIA's Triton container for TensorRT-LLM, see docs/tensorrt_llm.md",
        ) from error
    classes, missing = {}, []
    for name, (module, needed) in NEEDED.items():
        kind = _find(name, module)
        if kind is None:
            missing.append(f"{module}.{name}")
            continue
        classes[name] = kind
        missing += [f"{name}.{field}" for field in needed if field not in _fields(kind)]
    if built and (kind := _find("LLM", BUILT_ENGINES)) is None:
        raise TandemError(
            "environment",
            f"worker.tensorrt_llm.engine_dir: TensorRT-LLM {version} has no {BUILT_ENGINES}.LLM, and loads checkpoints "
            "only; leave engine_dir out",
        )
    if "LLM" in classes:
        classes["LLM"] = kind if built else classes["LLM"]
        missing += _find_missing_methods(classes["LLM"])
    if missing:
        raise TandemError(
            "environment",
            f"TensorRT-LLM {version} lacks {', '.join(missing)}; Tandem needs {OLDEST} or a later one that has them",
        )
    return Library(version, classes)


def _find_missing_methods(llm: Any) -> Iterable[str]:
    for method, parameters in CALLED.items():
        function = getattr(llm, method, None)
        if function is None:
            yield f"LLM.{method}()"
            continue
        yield from (f"LLM.{method}({p}=)" for p in parameters if p not in _parameters(function))


def _find(name: str, module: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _fields(kind: Any) -> set[str]:
    """Of a pydantic model, a dataclass or a plain class."""
    for listed in ("model_fields", "__dataclass_fields__"):
        if (fields := getattr(kind, listed, None)) is not None:
            return set(fields)
    return set(_parameters(kind.__init__))


def _parameters(function: Any) -> set[str]:
    """Names of parameters. One that takes any keywords is believed to take ours, too."""
    parameters = inspect.signature(function).parameters
    names = set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names |= {name for listed in CALLED.values() for name in listed}
    return names
