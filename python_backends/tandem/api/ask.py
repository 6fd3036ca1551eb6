"""What a client asks for: the request tensors of ``llm``, read and checked.

Names and shapes follow Triton's TensorRT-LLM models, so that their clients (Triton's OpenAI frontend among them)
work unchanged. Checks that need the model (``check_ids``, ``resolve_stopping``) follow once a worker is known.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, cast, get_args

import msgspec

from tandem.api.tensors import Tensors, take_bool, take_ids, take_int, take_number, take_text, take_texts
from tandem.errors import TandemError
from tandem.messages import DEFAULT_PRIORITY, Guide, GuideKind, Sampling, Stopping

MAX_STOP_WORDS = 16
MAX_STOP_WORD_BYTES = 256
MAX_TOP_LOGPROBS = 20
INT32_MAX = (1 << 31) - 1
LOWEST_PRIORITY = 9
TENANT = re.compile(r"[A-Za-z0-9._:@-]{0,64}")
"""Names that can stand in metrics and logs as they are."""

IGNORED_PARAMETERS = frozenset({"binary_data_output", "id", "priority", "timeout", "traceparent"})
"""Request parameters that stand for no input. Names with the prefix ``triton_`` are Triton's own."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Exactly one of ``text``, ``messages`` and ``token_ids`` is the prompt."""

    request_id: str
    stream: bool
    text: str | None = None
    messages: list[dict[str, str]] | None = None
    token_ids: list[int] | None = None
    sampling: Sampling
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop_words: tuple[str, ...] = ()
    timeout_s: float | None = None
    traceparent: str = ""
    """Of W3C: the caller's span, if any."""
    priority: int = DEFAULT_PRIORITY
    """1 is served first, as in Triton."""
    tenant: str = ""
    """Whose it is. Tenants of a priority share the workers evenly, and no cached blocks."""
    explain: bool = False
    """Tell what the router would decide now, instead of an answer."""


def read_ask(request_id: str, tensors: Tensors, parameters: str) -> Ask:
    """Read a request from its tensors and its parameters (a JSON object, as Triton gives it).

    Raises:
        TandemError: ``invalid_request``, naming the field, its value and what was expected.
    """
    names = check_parameters(parameters)
    _refuse_echo(tensors)
    text = take_text(tensors, "text_input")
    messages = _read_messages(tensors)
    token_ids = take_ids(tensors, "input_ids")
    prompts = [
        name
        for name, given in (("text_input", text), ("messages", messages), ("input_ids", token_ids))
        if given is not None
    ]
    if len(prompts) != 1:
        got = "none" if not prompts else " and ".join(prompts)
        raise TandemError("invalid_request", f"prompt: exactly one of text_input, messages, input_ids; got {got}")
    if not (text or messages or token_ids):
        raise TandemError("invalid_request", f"{prompts[0]}: the prompt is empty")
    max_tokens = _bounded_int(tensors, "max_tokens", 1, INT32_MAX)
    return Ask(
        request_id=request_id,
        stream=take_bool(tensors, "stream"),
        text=text,
        messages=messages,
        token_ids=token_ids,
        sampling=read_sampling(tensors),
        max_tokens=max_tokens,
        min_tokens=_bounded_int(tensors, "min_tokens", 0, max_tokens or INT32_MAX) or 0,
        ignore_eos=take_bool(tensors, "ignore_eos"),
        stop_token_ids=tuple(take_ids(tensors, "stop_token_ids") or ()),
        stop_words=_read_stop_words(tensors),
        timeout_s=_bounded(tensors, "timeout_s", 0.0, 86_400.0, above=True),
        traceparent=str(names.get("traceparent", "")),
        priority=_bounded_int(tensors, "priority", 0, LOWEST_PRIORITY) or DEFAULT_PRIORITY,
        tenant=_read_tenant(tensors),
        explain=take_bool(tensors, "explain"),
    )


def check_parameters(parameters: str) -> dict[str, Any]:
    """The request's parameters. Those that nobody reads are refused: a misspelt option must not pass in silence."""
    names: dict[str, Any] = json.loads(parameters) if parameters else {}
    unknown = sorted(n for n in names if n not in IGNORED_PARAMETERS and not n.startswith("triton_"))
    if unknown:
        raise TandemError(
            "invalid_request",
            f"{unknown[0]}: unknown parameter; GET /v2/models/<model>/config lists the inputs that this model takes",
        )
    return names


def read_sampling(tensors: Tensors) -> Sampling:
    """The sampling options. No temperature means 1.0 where ``top_k`` > 1, ``top_p`` or ``min_p`` is given, else 0."""
    top_k = _bounded_int(tensors, "top_k", 0, INT32_MAX) or 0
    top_p = _bounded(tensors, "top_p", 0.0, 1.0) or 1.0  # TensorRT-LLM's clients send 0 for "off"
    min_p = _bounded(tensors, "min_p", 0.0, 1.0) or 0.0
    temperature = _bounded(tensors, "temperature", 0.0, 1000.0)
    if temperature is None:
        temperature = 1.0 if top_k > 1 or top_p < 1.0 or min_p > 0.0 else 0.0
    top_logprobs = _bounded_int(tensors, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    wants_logprobs = top_logprobs is not None or take_bool(tensors, "return_log_probs")
    seed = take_int(tensors, "seed")
    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=_or_one(_bounded(tensors, "repetition_penalty", 0.0, 1000.0, above=True)),
        presence_penalty=_bounded(tensors, "presence_penalty", -2.0, 2.0) or 0.0,
        frequency_penalty=_bounded(tensors, "frequency_penalty", -2.0, 2.0) or 0.0,
        seed=secrets.randbits(63) if seed is None else seed,
        logprobs=(top_logprobs or 0) if wants_logprobs else None,
        guide=_read_guide(tensors),
        lora_task_id=take_int(tensors, "lora_task_id"),
    )


def check_ids(name: str, ids: list[int] | tuple[int, ...], vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary."""
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise TandemError(
                "invalid_request", f"{name}[{place}]: {token} is no token id; expected 0 to {vocab_size - 1}"
            )


def resolve_stopping(
    ask: Ask, prompt_tokens: int, max_model_len: int, default_max_tokens: int, eos_ids: tuple[int, ...]
) -> Stopping:
    """When the answer ends, given the prompt's length in tokens.

    Raises:
        TandemError: ``prompt_too_long``, or ``invalid_request`` where ``max_tokens`` is more than the context leaves.
    """
    left = max_model_len - prompt_tokens
    if left < 1:
        raise TandemError(
            "prompt_too_long",
            f"prompt: {prompt_tokens} tokens; at most {max_model_len - 1} leave room for an answer in the model's "
            f"context of {max_model_len}",
        )
    if ask.max_tokens is not None and ask.max_tokens > left:
        raise TandemError(
            "invalid_request",
            f"max_tokens: {ask.max_tokens}; after a prompt of {prompt_tokens} tokens the context of {max_model_len} "
            f"leaves {left}",
        )
    max_tokens = ask.max_tokens or min(default_max_tokens, left)
    if ask.min_tokens > max_tokens:
        raise TandemError("invalid_request", f"min_tokens: {ask.min_tokens} is more than max_tokens, {max_tokens}")
    stop_ids = ask.stop_token_ids if ask.ignore_eos else (*eos_ids, *ask.stop_token_ids)
    return Stopping(max_tokens=max_tokens, min_tokens=ask.min_tokens, stop_token_ids=tuple(dict.fromkeys(stop_ids)))


def _read_messages(tensors: Tensors) -> list[dict[str, str]] | None:
    text = take_text(tensors, "messages")
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=list[dict[str, str]])
    except msgspec.DecodeError as error:
        raise TandemError(
            "invalid_request",
            f'messages: {error}; expected JSON such as [{{"role": "user", "content": "Hello"}}]',
        ) from error


def _read_stop_words(tensors: Tensors) -> tuple[str, ...]:
    words = take_texts(tensors, "stop_words")
    if len(words) > MAX_STOP_WORDS:
        raise TandemError("invalid_request", f"stop_words: {len(words)} given, at most {MAX_STOP_WORDS} allowed")
    for place, word in enumerate(words):
        size = len(word.encode())
        if not 1 <= size <= MAX_STOP_WORD_BYTES:
            raise TandemError(
                "invalid_request", f"stop_words[{place}]: {size} bytes long; expected 1 to {MAX_STOP_WORD_BYTES}"
            )
    return tuple(words)


def _read_guide(tensors: Tensors) -> Guide | None:
    kind, text = take_text(tensors, "guided_decoding_guide_type"), take_text(tensors, "guided_decoding_guide")
    if kind is None:
        if text is not None:
            raise TandemError("invalid_request", "guided_decoding_guide: needs guided_decoding_guide_type beside it")
        return None
    kinds = get_args(GuideKind)
    if kind not in kinds:
        raise TandemError(
            "invalid_request", f"guided_decoding_guide_type: {kind!r}; expected one of {', '.join(kinds)}"
        )
    if (kind == "json") == bool(text):
        needs = "takes no guided_decoding_guide" if text else "needs a guided_decoding_guide"
        raise TandemError("invalid_request", f"guided_decoding_guide_type: {kind!r} {needs}")
    return Guide(kind=cast(GuideKind, kind), text=text or "")


def _read_tenant(tensors: Tensors) -> str:
    tenant = take_text(tensors, "tenant") or ""
    if not TENANT.fullmatch(tenant):
        raise TandemError(
            "invalid_request", f"tenant: {tenant[:80]!r}; expected at most 64 letters, digits or any of . _ : @ -"
        )
    return tenant


def _refuse_echo(tensors: Tensors) -> None:
    if "exclude_input_in_output" in tensors and not take_bool(tensors, "exclude_input_in_output"):
        raise TandemError(
            "invalid_request", "exclude_input_in_output: false; answers never repeat the prompt, send true"
        )


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _bounded(tensors: Tensors, name: str, low: float, high: float, *, above: bool = False) -> float | None:
    """An optional number within [low, high], or (low, high] with ``above``."""
    value = take_number(tensors, name)
    if value is not None and not (low < value <= high if above else low <= value <= high):
        expected = f"more than {low:g} and at most {high:g}" if above else f"{low:g} to {high:g}"
        raise TandemError("invalid_request", f"{name}: {value:g}; expected {expected}")
    return value


def _bounded_int(tensors: Tensors, name: str, low: int, high: int) -> int | None:
    value = take_int(tensors, name)
    if value is not None and not low <= value <= high:
        raise TandemError("invalid_request", f"{name}: {value}; expected {low} to {high}")
    return value
