"""Refuses work that this engine cannot do, before it takes a place in the queue."""

from __future__ import annotations

import math

from tandem.engines.torch.sequence import Sequence
from tandem.errors import TandemError
from tandem.messages import AnyWork, Decode, Feature, Sampling, WorkerInfo


def check_work(work: AnyWork, info: WorkerInfo) -> None:
    """Whether ``work`` is well formed and within the model's limits.

    Raises:
        TandemError: ``invalid_request`` or ``prompt_too_long``, naming field, value and limit.
    """
    _check_tokens(work, info)
    _check_length(work, info.max_model_len)
    _check_sampling(work.sampling, info.vocab_size)
    _check_features(work.sampling, info)


def check_room(sequence: Sequence, info: WorkerInfo, num_blocks: int) -> None:
    """Whether all of a worker's KV blocks together could hold ``sequence``.

    Raises:
        TandemError: ``prompt_too_long``, naming both numbers.
    """
    size = info.kv.block_size
    needed = sequence.blocks_needed
    if needed > num_blocks:
        raise TandemError(
            "prompt_too_long",
            f"token_ids: {sequence.num_prompt} prompt tokens, with max_tokens {sequence.work.stopping.max_tokens}, "
            f"need {needed} KV blocks of {size} tokens; worker {info.worker_id!r} has {num_blocks} (worker.kv_memory)",
        )


def _check_tokens(work: AnyWork, info: WorkerInfo) -> None:
    if not work.token_ids:
        raise TandemError("invalid_request", "token_ids: is empty; a prompt has at least 1 token")
    named = {
        "token_ids": work.token_ids,
        "output_ids": work.output_ids,
        "stop_token_ids": work.stopping.stop_token_ids,
    }
    for name, ids in named.items():
        wrong = next((t for t in ids if not 0 <= t < info.vocab_size), None)
        if wrong is not None:
            raise TandemError("invalid_request", f"{name}: {wrong} is no token; ids go from 0 to {info.vocab_size - 1}")
    if isinstance(work, Decode) and not work.output_ids:
        raise TandemError("invalid_request", "output_ids: is empty; decode goes on after at least 1 answer token")


def _check_length(work: AnyWork, max_model_len: int) -> None:
    prompt, stopping = len(work.token_ids), work.stopping
    if prompt >= max_model_len:
        raise TandemError(
            "prompt_too_long", f"token_ids: {prompt} prompt tokens; this model takes at most {max_model_len - 1}"
        )
    room = max_model_len - prompt
    if not 1 <= stopping.max_tokens <= room:
        raise TandemError(
            "invalid_request",
            f"max_tokens: {stopping.max_tokens}; after {prompt} prompt tokens it must lie from 1 to {room}",
        )
    if stopping.max_tokens <= len(work.output_ids):
        raise TandemError(
            "invalid_request",
            f"max_tokens: {stopping.max_tokens}, but the answer has {len(work.output_ids)} tokens already (output_ids)",
        )
    if not 0 <= stopping.min_tokens <= stopping.max_tokens:
        raise TandemError(
            "invalid_request", f"min_tokens: {stopping.min_tokens}; must lie from 0 to max_tokens {stopping.max_tokens}"
        )


def _check_sampling(s: Sampling, vocab_size: int) -> None:
    problems = {
        "temperature": (s.temperature, "finite and at least 0", math.isfinite(s.temperature) and s.temperature >= 0),
        "top_k": (s.top_k, "at least 0 (0: off)", s.top_k >= 0),
        "top_p": (s.top_p, "above 0 and at most 1", 0 < s.top_p <= 1),
        "min_p": (s.min_p, "from 0 to 1", 0 <= s.min_p <= 1),
        "repetition_penalty": (
            s.repetition_penalty,
            "finite and above 0",
            math.isfinite(s.repetition_penalty) and s.repetition_penalty > 0,
        ),
        "presence_penalty": (s.presence_penalty, "finite", math.isfinite(s.presence_penalty)),
        "frequency_penalty": (s.frequency_penalty, "finite", math.isfinite(s.frequency_penalty)),
        "logprobs": (s.logprobs, f"from 0 to {vocab_size}", s.logprobs is None or 0 <= s.logprobs <= vocab_size),
    }
    for name, (value, expected, fits) in problems.items():
        if not fits:
            raise TandemError("invalid_request", f"{name}: {value}; must be {expected}")


def _check_features(sampling: Sampling, info: WorkerInfo) -> None:
    """What not every engine can."""
    asked: dict[Feature, tuple[str, object]] = {}
    if sampling.lora_task_id is not None:
        asked["lora"] = ("lora_task_id", sampling.lora_task_id)
    if sampling.guide is not None:
        asked["guided_decoding"] = ("guided_decoding_guide_type", sampling.guide.kind)
    for feature, (field, value) in asked.items():
        if feature not in info.features:
            raise TandemError(
                "invalid_request",
                f"{field}: {value!r}; worker {info.worker_id!r}, engine {info.engine!r}, has no {feature}",
            )
