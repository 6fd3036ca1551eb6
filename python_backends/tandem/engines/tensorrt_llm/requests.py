"""Work as requests to TensorRT-LLM: what goes in, and where in the answer what comes out belongs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from tandem.deployment import LoraAdapter
from tandem.engines.tensorrt_llm.library import Library
from tandem.engines.tensorrt_llm.logprobs import unpack_logprobs
from tandem.errors import TandemError
from tandem.messages import AnyWork, Guide, HeldByLibrary, Prefill, Sampling, Stopping

Kind = Literal["context_only", "generation_only", "context_and_generation"]

SMALLEST_SHARED_ID = 1 << 61
"""Newer versions know a request by one id on both sides, and keep small ones for themselves."""
GUIDE_FIELDS = {
    "json_schema": "json",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tag",
}


@dataclass(frozen=True)
class Request:
    """One request to the library."""

    kind: Kind
    prompt: list[int]
    first_index: int
    """Place in the answer of the first token that comes out."""
    held: HeldByLibrary | None = None


def plan_request(library: Library, work: AnyWork, held: HeldByLibrary | None, num_held: int) -> Request:
    """How ``work`` is done. ``held`` is KV of the first ``num_held`` tokens of prompt and answer.

    The library goes on from KV only where all tokens but the last are in it; otherwise all is read anew. A prefill is
    no context phase where its token ends the answer, or its KV would be of no use: it would stay until its time is
    over.
    """
    known = [*work.token_ids, *work.output_ids]
    if isinstance(work, Prefill):
        ends = len(work.output_ids) + 1 >= work.stopping.max_tokens
        is_useless = work.sampling.logprobs is not None and not library.takes_first_logprobs
        kind: Kind = "context_and_generation" if ends or is_useless else "context_only"
        return Request(kind, known, len(work.output_ids))
    if held is not None and held.opaque_state and held.first_token_ids == known[num_held:]:
        return Request("generation_only", known[:num_held], len(work.output_ids) - 1, held)
    return Request("context_and_generation", known, len(work.output_ids))


def make_call(
    library: Library, work: AnyWork, request: Request, adapters: dict[int, LoraAdapter], *, streaming: bool
) -> dict[str, Any]:
    """Keyword arguments of ``generate_async``, all objects new: the library writes into them.

    Raises:
        TandemError: ``invalid_request``: there is no such adapter, or this version has no salts.
    """
    call: dict[str, Any] = {
        "inputs": {"prompt_token_ids": list(request.prompt)},
        "sampling_params": _make_sampling(library, work, request),
        "streaming": streaming,
        "disaggregated_params": _make_disaggregated(library, request),
    }
    task = work.sampling.lora_task_id
    if task is not None:
        if (adapter := adapters.get(task)) is None:
            known = ", ".join(map(str, sorted(adapters))) or "none"
            raise TandemError("invalid_request", f"lora_task_id: {task} is no adapter of this worker; it has {known}")
        call["lora_request"] = library.LoRARequest(f"task-{task}", task, adapter.path)
    if work.salt:
        if not library.takes("generate_async", "cache_salt"):
            raise TandemError(
                "invalid_request", f"salt: TensorRT-LLM {library.version} shares its KV cache among all requests"
            )
        call["cache_salt"] = work.salt
    return call


def _make_sampling(library: Library, work: AnyWork, request: Request) -> Any:
    """Stop tokens: the first one is told as the end token, which a context phase alone heeds. Where an answer has a
    least length none are told, since the library would stop at them all the same; ``answer.py`` sees to it."""
    s, stopping = work.sampling, work.stopping
    end, *others = stop_tokens(stopping, request.first_index) or [-1]
    return library.SamplingParams(
        max_tokens=1 if isinstance(work, Prefill) else stopping.max_tokens - request.first_index,
        stop_token_ids=others or None,
        include_stop_str_in_output=True,
        end_id=end,  # -1: none; by ``ignore_eos`` newer versions would ignore all stop tokens
        pad_id=0,
        detokenize=False,
        logprobs=None if s.logprobs is None else max(1, s.logprobs),
        guided_decoding=None if s.guide is None else _make_guide(library, s.guide),
        repetition_penalty=None if s.repetition_penalty == 1.0 else s.repetition_penalty,
        presence_penalty=s.presence_penalty or None,
        frequency_penalty=s.frequency_penalty or None,
        **_make_choice(s),
    )


def stop_tokens(stopping: Stopping, first_index: int) -> list[int]:
    """Those that the library is told of for an answer that goes on from ``first_index``."""
    return [] if stopping.min_tokens > first_index else list(stopping.stop_token_ids)


def _make_choice(s: Sampling) -> dict[str, Any]:
    """Greedy is said by ``top_k`` 1, which no version takes for anything else."""
    if s.temperature == 0:
        return {"top_k": 1}
    return {
        "temperature": s.temperature,
        "top_k": s.top_k or None,
        "top_p": s.top_p,
        "min_p": s.min_p or None,
        "seed": s.seed,
    }


def _make_guide(library: Library, guide: Guide) -> Any:
    if guide.kind == "json":
        return library.GuidedDecodingParams(json_object=True)
    return library.GuidedDecodingParams(**{GUIDE_FIELDS[guide.kind]: guide.text})


def _make_disaggregated(library: Library, request: Request) -> Any:
    if request.kind == "context_and_generation":
        return None
    if request.held is None:
        more = {}
        if "disagg_request_id" in library.extra_disaggregated:
            more["disagg_request_id"] = SMALLEST_SHARED_ID | secrets.randbits(60)
        return library.DisaggregatedParams(request_type=request.kind, **more)
    held = request.held
    return library.DisaggregatedParams(
        request_type=request.kind,
        ctx_request_id=held.context_request_id,
        opaque_state=held.opaque_state,
        first_gen_tokens=list(held.first_token_ids),
        draft_tokens=held.draft_token_ids,
        **held.more,
        **({"first_gen_log_probs": unpack_logprobs(library, held.first_logprobs)} if held.first_logprobs else {}),
    )


def salt_of(work: AnyWork) -> str:
    """What sets its cached blocks apart. Adapters share none with one another, nor with the bare model."""
    task = work.sampling.lora_task_id
    return work.salt if task is None else f"{work.salt} lora {task}"
