"""What a context request answers with, for the generation request to be given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tensorrt_llm._requests import DisaggregatedParams, Misuse
from tensorrt_llm._results import Response
from tensorrt_llm._sequence import Sequence
from tensorrt_llm._settings import version


def make_context_params(sequence: Sequence, opaque: bytes, response: Response) -> Response:
    """The last answer of a context request, with its handle."""
    fields: dict[str, Any] = {"first_gen_tokens": sequence.answer[:1], "ctx_request_id": sequence.transfer_id}
    if version() != "1.2":
        fields["disagg_request_id"] = sequence.disaggregated.disagg_request_id
        fields["first_gen_log_probs"] = [response.logprobs] if response.logprobs else None
    params = DisaggregatedParams(request_type="context_only", opaque_state=opaque, **fields)
    return replace(response, context=params)


def check_handle(params: Any) -> None:
    """Refuse what the real library does not survive.

    Raises:
        Misuse: a part of the handle is missing.
    """
    if not params.first_gen_tokens or params.opaque_state is None or params.ctx_request_id is None:
        raise Misuse(
            "generation_only needs first_gen_tokens, ctx_request_id and opaque_state of the context phase: without "
            "them the real engine crashes in C++"
        )
