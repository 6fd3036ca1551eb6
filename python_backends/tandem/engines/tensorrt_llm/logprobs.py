"""Log-probabilities as the library tells them: in Tandem's form, and packed for a handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.engines.tensorrt_llm.library import Library
from tandem.messages import TokenLogprob


def read_logprob(token: int, entry: Any, top: int) -> TokenLogprob:
    """Of one place: in newer versions a number where only the chosen token's is asked for, else one for each token."""
    if not isinstance(entry, Mapping):
        return TokenLogprob(logprob=float(entry))
    values = {each: _number(told) for each, told in entry.items()}
    likeliest = sorted(values.items(), key=lambda item: -item[1])[:top]
    return TokenLogprob(logprob=values[token], top=likeliest)


def _number(told: Any) -> float:
    return float(told.logprob if hasattr(told, "logprob") else told)


def pack_logprobs(told: Any) -> Any:
    """What a context phase tells of its token, nested as it may be: plain lists and numbers, a mapping as a list of
    (token, log-probability, rank) under the key "of"."""
    if isinstance(told, Mapping):
        return {"of": [[token, each.logprob, each.rank] for token, each in told.items()]}
    if isinstance(told, list | tuple):
        return [pack_logprobs(each) for each in told]
    return told


def unpack_logprobs(library: Library, packed: Any) -> Any:
    """What ``pack_logprobs`` was given."""
    if isinstance(packed, Mapping):
        return {token: library.Logprob(logprob, rank) for token, logprob, rank in packed["of"]}
    if isinstance(packed, list | tuple):
        return [unpack_logprobs(library, each) for each in packed]
    return packed
