"""What single engines take, beside what all do: a worker's ``faults`` and ``tensorrt_llm``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from tandem.deployment.base import PositiveFloat, PositiveInt, Section, Share


class Faults(Section, frozen=True, kw_only=True):
    """Failures on demand, of the engine ``sim``. Which requests a share falls on is decided by their ids."""

    step_share: Share = 0.0
    """Of the requests, those whose first step fails (``engine_failed``)."""
    pull_share: Share = 0.0
    """Of the requests, those whose KV cannot be pulled (``transfer_failed``)."""
    crash_after: PositiveInt | None = None
    """The engine dies when it has taken this many requests."""
    hang_after: PositiveInt | None = None
    """From this request on it makes no more steps, and gives no sign of it."""


class LoraAdapter(Section, frozen=True, kw_only=True):
    """Weights that requests may have added to the model's."""

    task_id: PositiveInt
    """What a request names it by: ``lora_task_id``."""
    path: str
    """Directory of the adapter in Hugging Face form; relative to the deployment file."""


class TensorRtLlm(Section, frozen=True, kw_only=True):
    """Of the engine ``tensorrt_llm``: what it is told beside what all engines are."""

    engine_dir: str | None = None
    """Directory of a built TensorRT engine (TensorRT-LLM 1.2 only); when left out, the checkpoint itself is loaded.
    Relative to the deployment file."""
    expert_parallel_size: PositiveInt = 1
    """Among how many of the tensor-parallel ranks the experts are shared out."""
    attention_data_parallel: bool = False
    """Each rank has attention whole, for requests of its own."""
    kv_fraction: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Of the GPU memory that weights and activations leave, what the KV cache takes; when left out, ``kv_memory``."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """auto: the model's."""
    cache_transceiver: Literal["NIXL", "UCX", "MOONCAKE"] = "NIXL"
    """What moves KV between workers, the same for all of them. How long it may take is in [kv]."""
    max_tokens_in_buffer: PositiveInt | None = None
    """Tokens for which the transceiver has buffers; when left out, the longest prompt's."""
    guided_decoding: Literal["xgrammar", "llguidance"] | None = None
    """What holds answers to a grammar; None: requests for it are refused."""
    lora: list[LoraAdapter] = []
    max_lora_rank: PositiveInt = 64
    stall_timeout_s: PositiveFloat = 120.0
    """An engine in which no request gets on for as long is given up, and started again."""
