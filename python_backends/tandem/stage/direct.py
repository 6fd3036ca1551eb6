"""A stage used on its own: a plain client's tensors become work, and the work's events responses."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TypedDict

import numpy as np

from tandem.api.ask import Ask, check_ids, read_ask, resolve_stopping
from tandem.api.responder import Responder
from tandem.api.tensors import (
    Array,
    Tensors,
    floats_tensor,
    ids_tensor,
    number_tensor,
    take_ids,
    take_text,
    text_tensor,
)
from tandem.deployment import Limits
from tandem.errors import TandemError
from tandem.messages import (
    AnyWork,
    Decode,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Prefill,
    Prefilled,
    Pulled,
    Sampling,
    Stopping,
    TokenLogprob,
    Tokens,
    WorkerInfo,
)


class _Common(TypedDict):
    """The fields of every ``Work``."""

    request_id: str
    token_ids: list[int]
    output_ids: list[int]
    sampling: Sampling
    stopping: Stopping
    traceparent: str
    priority: int


def read_work(
    request_id: str, tensors: Tensors, parameters: str, info: WorkerInfo, limits: Limits, eos_ids: tuple[int, ...]
) -> tuple[Ask, AnyWork]:
    """The work that a plain client asks of this stage.

    Prefill reads the prompt. Decode redeems ``kv_handle`` and goes on after ``output_ids``; without a handle it does
    the whole request.

    Raises:
        TandemError: naming the field, its value and what was expected.
    """
    ask = read_ask(request_id, tensors, parameters)
    prompt = ask.token_ids or []
    check_ids("input_ids", prompt, info.vocab_size)
    check_ids("stop_token_ids", ask.stop_token_ids, info.vocab_size)
    output_ids = take_ids(tensors, "output_ids") or []
    check_ids("output_ids", output_ids, info.vocab_size)
    stopping = resolve_stopping(ask, len(prompt), info.max_model_len, limits.default_max_tokens, eos_ids)
    if len(output_ids) >= stopping.max_tokens:
        raise TandemError(
            "invalid_request",
            f"output_ids: {len(output_ids)} tokens of the answer exist, max_tokens is {stopping.max_tokens}",
        )
    handle = _read_handle(tensors)
    common = _Common(
        request_id=request_id,
        token_ids=prompt,
        output_ids=output_ids,
        sampling=ask.sampling,
        stopping=stopping,
        traceparent=ask.traceparent,
        priority=ask.priority,
    )
    if info.stage == "prefill":
        return ask, Prefill(**common)
    if handle is None:
        return ask, Generate(**common)
    return ask, Decode(**common, handle=handle)


def take_access(parameters: str) -> tuple[str, str]:
    """The request parameter ``access``, empty where it is not given, and the others (as JSON)."""
    given = json.loads(parameters) if parameters else {}
    access = given.pop("access", "")
    return str(access), json.dumps(given)


def _read_handle(tensors: Tensors) -> bytes | None:
    text = take_text(tensors, "kv_handle")
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise TandemError(
            "handle_malformed", f"kv_handle: not base64 ({error}); pass on what prefill returned"
        ) from error


class DirectAnswer:
    """Turns one request's events into responses: one per step when streaming, else one in all."""

    def __init__(self, responder: Responder, *, stream: bool, prompt_tokens: int, output_tokens: int) -> None:
        self._responder = responder
        self._stream = stream
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._moved: dict[str, Array] = {}

    def take(self, events: list[EngineEvent]) -> None:
        """Take in events; the last one ends the response."""
        for event in events:
            match event:
                case Tokens():
                    self._ids += event.token_ids
                    self._logprobs += event.logprobs or []
                    self._output_tokens += len(event.token_ids)
                case Pulled():
                    self._moved = {
                        "kv_bytes": number_tensor(event.bytes_moved, np.int64),
                        "kv_transfer_ms": number_tensor(1e3 * event.seconds, np.float32),
                    }
                case Prefilled():
                    self._end(event.finish_reason or "", event.handle)
                    return
                case Finished():
                    self._end(event.reason, None)
                    return
                case Failed():
                    self._responder.fail(TandemError(event.code, event.message))
                    return
        if self._stream and self._ids:
            self._responder.send(self._take_ids(), final=False)

    def _take_ids(self) -> dict[str, Array]:
        tensors = {"output_ids": ids_tensor(self._ids)}
        if self._logprobs:
            tensors["output_log_probs"] = floats_tensor(entry.logprob for entry in self._logprobs)
        self._ids, self._logprobs = [], []
        return tensors

    def _end(self, reason: str, handle: bytes | None) -> None:
        tensors = self._take_ids() | self._moved
        tensors["finish_reason"] = text_tensor(reason)
        tensors["num_input_tokens"] = number_tensor(self._prompt_tokens, np.int32)
        tensors["num_output_tokens"] = number_tensor(self._output_tokens, np.int32)
        if handle is not None:
            tensors["kv_handle"] = text_tensor(base64.b64encode(handle))
        self._responder.send(tensors, final=True)
