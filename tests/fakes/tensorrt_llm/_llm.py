"""``LLM``: settings checked as the real one checks them, requests checked before they go to the engine."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tensorrt_llm._engine import Engine
from tensorrt_llm._requests import DisaggregatedParams, LlmArgs, Misuse, SamplingParams
from tensorrt_llm._results import IterationResult, RequestError, RequestOutput
from tensorrt_llm._sequence import Sequence
from tensorrt_llm._settings import number, version

_NO_TRANSCEIVER = (
    "kv_cache_transceiver is disabled, please set 'cache_transceiver_config: backend:<backend_type>` in config file for "
    "disaggregated serving"
)
_OVERLAP = "Context only requests are not supported in pytorch backend when overlap is enabled."


class LLM:
    """One engine."""

    def __init__(self, model: str | Path, **settings: Any) -> None:
        known = LlmArgs.__dataclass_fields__
        for name in settings:
            if name not in known:
                raise ValueError(f"LLM got invalid argument: {name}")
        self.args = _checked(model, settings)
        config = _read_config(Path(model))
        world = self.args.tensor_parallel_size * self.args.pipeline_parallel_size
        if world > number("GPUS", 1):
            raise RuntimeError(f"Only {number('GPUS', 1):g} GPUs are available, but {world} are required.")
        self._end_id: int | None = None if self.args.skip_tokenizer_init else _end_id(config)
        self._vocab_size = int(config.get("vocab_size", number("VOCAB", 32000)))
        max_seq_len = self.args.max_seq_len or int(config.get("max_position_embeddings", 4096))
        self._client_ids = itertools.count(1)
        self._seen: dict[int, Any] = {}
        self._engine: Engine | None = Engine(self.args, self._vocab_size, max_seq_len)
        if self._engine.faults.strikes("construct"):
            self.shutdown()
            raise RuntimeError("Executor worker returned error: CUDA out of memory. Tried to allocate 13.00 GiB.")

    @property
    def faults(self) -> Any:
        """To arm faults in tests that share the process; the real one has nothing of the kind."""
        assert self._engine is not None
        return self._engine.faults

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        trace_headers: Any = None,
        *,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Begin a request: raises for what is wrong at once; everything else the result tells."""
        engine = self._engine
        if engine is None or engine.stopped:
            raise RuntimeError("LLM is shutting down")
        if engine.faults.strikes("generate"):
            raise RuntimeError("the request queue to the worker is broken")
        prompt = _token_ids(inputs)
        client_id = next(self._client_ids)
        sampling = self._prepare(sampling_params, client_id)
        if disaggregated_params is not None and disaggregated_params.request_type == "context_only":
            sampling.max_tokens = 1  # in the caller's own object, as the real one does
        self._check_length(prompt, disaggregated_params)
        engine.expect_more()
        sequence = Sequence(
            client_id=client_id,
            prompt=list(prompt),
            sampling=copy.copy(sampling),
            max_tokens=0,
            streaming=streaming,
            disaggregated=copy.copy(disaggregated_params),
            salt=cache_salt or "",
        )
        sequence.result = RequestOutput(engine, sequence)
        self._enqueue(engine, sequence, disaggregated_params)
        return sequence.result

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        results = self._results("stats")
        return _drain(results, timeout) if results else []

    def get_stats_async(self, timeout: float | None = 2) -> IterationResult | AsyncIterator[dict[str, Any]]:
        results = self._results("stats")
        if results is None:
            return _nothing()
        results.set_timeout(timeout if timeout is not None else 2)
        return results

    def get_kv_cache_events(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        results = self._results("events")
        assert results is not None, "KV Event IterationResult is not properly instantiated."
        return _drain(results, timeout)

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> IterationResult:
        results = self._results("events")
        assert results is not None, "KV Event IterationResult is not properly instantiated."
        results.set_timeout(timeout if timeout is not None else 2)
        return results

    def shutdown(self) -> None:
        """End the engine. Requests in hand hear nothing more."""
        if self._engine is not None:
            self._engine.stop()

    def _check_health(self) -> bool:
        return self._engine is not None and self._engine.is_healthy

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # ------------------------------------------------------------ checks of one request

    def _prepare(self, sampling: Any, client_id: int) -> Any:
        sampling = SamplingParams() if sampling is None else sampling
        if not isinstance(sampling, SamplingParams):
            raise TypeError(f"The sampling_params must be type SamplingParams or None, but got {type(sampling)}")
        if sampling.end_id is None:
            if self._end_id is None:
                raise ValueError(
                    "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id for "
                    "sampling_params"
                )
            sampling.end_id = self._end_id
        sampling.bind(client_id)
        if sampling.n != 1 or sampling.use_beam_search:
            raise Misuse(f"n={sampling.n}, use_beam_search={sampling.use_beam_search}: the fake has one answer only")
        return sampling

    def _check_length(self, prompt: list[int], params: Any) -> None:
        generation = params is not None and params.request_type == "generation_only"
        limit = self.args.max_num_tokens
        if not self.args.enable_chunked_prefill and not generation and len(prompt) > limit:
            why = f"The sum of prompt length ({float(len(prompt))}), query length (0) should not exceed max_num_tokens ({limit})"
            raise ValueError(why) if version() == "1.2" else RequestError(why)

    def _enqueue(self, engine: Engine, sequence: Sequence, params: Any) -> None:
        """What the worker process checks: what it does not expect ends the engine, not only the request."""
        if params is not None:
            if not isinstance(params, DisaggregatedParams):
                raise TypeError(f"disaggregated_params must be DisaggregatedParams, but got {type(params)}")
            if not engine.has_transceiver and sequence.kind != "context_and_generation":
                engine.fail(AssertionError(_NO_TRANSCEIVER))
            if sequence.kind == "context_only" and version() == "1.2" and not self.args.disable_overlap_scheduler:
                engine.fail(ValueError(_OVERLAP))
            if sequence.kind == "generation_only":
                _check_handle(sequence.disaggregated)
        shared = getattr(params, "disagg_request_id", None)
        from_context = params.ctx_request_id if sequence.kind == "generation_only" else None
        sequence.request_id = shared or from_context or engine.next_request_id()
        room = engine.max_seq_len - len(sequence.prompt)
        error = None
        if room <= 0 or sequence.sampling.max_tokens <= 0:
            error = "Encountered an error when fetching new request: maxNewTokens must be greater than 0"
        elif any(not 0 <= token < self._vocab_size for token in sequence.prompt):
            error = "Token ID out of range (1 requests)"
        if error is not None:
            engine._answer(sequence, _error(error))
            return
        sequence.max_tokens = min(sequence.sampling.max_tokens, room)
        if sequence.kind == "generation_only":
            sequence.max_tokens = max(sequence.max_tokens, 2)  # the length is looked at after the second token only
        engine.submit(sequence)

    def _results(self, which: str) -> IterationResult | None:
        engine = self._engine
        if engine is None or engine.stopped:
            raise RuntimeError("LLM is shutting down")
        if engine.faults.strikes(which):
            raise RuntimeError(f"the queue of {which} is broken")
        return engine.stats_result if which == "stats" else engine.events_result


def _error(why: str) -> Any:
    from tensorrt_llm._results import Response

    return Response(error=why)


def _checked(model: str | Path, settings: dict[str, Any]) -> Any:
    args = LlmArgs(model=str(model), **settings)
    for name, default in (("max_batch_size", 2048), ("max_num_tokens", 8192), ("max_beam_width", 1)):
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.backend not in (None, "pytorch", "_autodeploy") or (args.backend is None and version() == "1.2"):
        raise Misuse(f"backend {args.backend!r}: the fake is a PyTorch backend; pass backend='pytorch' or leave it out")
    return args


def _read_config(model: Path) -> dict[str, Any]:
    if not model.is_dir():
        raise ValueError(f"{model} is neither a local model directory nor a model of the Hugging Face Hub")
    path = model / "config.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _end_id(config: dict[str, Any]) -> int | None:
    found = config.get("eos_token_id")
    return found[0] if isinstance(found, list) else found


def _token_ids(inputs: Any) -> list[int]:
    if isinstance(inputs, dict):
        inputs = inputs.get("prompt_token_ids")
    if not isinstance(inputs, list) or not all(isinstance(each, int) for each in inputs):
        raise Misuse(f"inputs of type {type(inputs)}: Tandem passes token ids, as a list or as prompt_token_ids")
    if not inputs:
        raise ValueError("The prompt must have at least one token")
    return inputs


def _check_handle(params: Any) -> None:
    if not params.first_gen_tokens or params.opaque_state is None or params.ctx_request_id is None:
        raise Misuse(
            "generation_only needs first_gen_tokens, ctx_request_id and opaque_state of the context phase: without them "
            "the real engine crashes in C++"
        )


def _drain(results: IterationResult, timeout: float | None) -> list[dict[str, Any]]:
    results.set_timeout(timeout if timeout is not None else 2)
    return results.get_results()


async def _nothing() -> AsyncIterator[dict[str, Any]]:
    return
    yield {}
