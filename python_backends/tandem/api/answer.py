"""What a client gets: pieces of an answer, and with the last one the facts about it, as tensors."""

from __future__ import annotations

import json

import msgspec
import numpy as np

from tandem.api.tensors import Array, floats_tensor, ids_tensor, number_tensor, text_tensor
from tandem.messages import FinishReason, TokenLogprob


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Part of an answer: text that is whole characters, and the tokens since the last piece."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the final response says about the whole answer."""

    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    ttft_ms: float = 0.0
    prefill_worker: str = ""
    decode_worker: str = ""
    kv_bytes: int = 0
    kv_transfer_ms: float = 0.0
    route: str = ""
    """How the router came to choose these workers."""
    trace_id: str = ""


def piece_tensors(piece: Piece) -> dict[str, Array]:
    """``text_output`` [1,1] STRING, ``output_ids`` [1,n] INT32, and log-probabilities where they were asked for."""
    tensors = {"text_output": text_tensor(piece.text), "output_ids": ids_tensor(piece.token_ids)}
    if piece.logprobs:
        tensors["output_log_probs"] = floats_tensor(entry.logprob for entry in piece.logprobs)
        tensors["top_log_probs"] = text_tensor(json.dumps([entry.top for entry in piece.logprobs]))
    return tensors


def facts_tensors(facts: Facts) -> dict[str, Array]:
    """The facts, one [1,1] tensor each, named as the fields; ``trace_id`` only where there is one."""
    traced = {"trace_id": text_tensor(facts.trace_id)} if facts.trace_id else {}
    return traced | {
        "finish_reason": text_tensor(facts.finish_reason),
        "num_input_tokens": number_tensor(facts.num_input_tokens, np.int32),
        "num_output_tokens": number_tensor(facts.num_output_tokens, np.int32),
        "num_cached_tokens": number_tensor(facts.num_cached_tokens, np.int32),
        "ttft_ms": number_tensor(facts.ttft_ms, np.float32),
        "prefill_worker": text_tensor(facts.prefill_worker),
        "decode_worker": text_tensor(facts.decode_worker),
        "kv_bytes": number_tensor(facts.kv_bytes, np.int64),
        "kv_transfer_ms": number_tensor(facts.kv_transfer_ms, np.float32),
        "route": text_tensor(facts.route),
    }
