"""``LLM``: settings checked as the real one checks them, requests checked before they go to the engine."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tensorrt_llm._checks import check_adapter, check_guide, end_id_of, read_config, token_ids_of
from tensorrt_llm._engine import Engine
from tensorrt_llm._feeds import Feed
from tensorrt_llm._handover import check_handle
from tensorrt_llm._requests import DisaggregatedParams, LlmArgs, Misuse, SamplingParams
from tensorrt_llm._results import IterationResult, RequestError, RequestOutput, Response
from tensorrt_llm._sequence import Sequence
from tensorrt_llm._settings import number, version
from tensorrt_llm._tokens import make_flavour

_NO_TRANSCEIVER = (
    "kv_cache_transceiver is disabled, please set 'cache_transceiver_config: backend:<backend_type>` in config file "
    "for disaggregated serving"
)
_OVERLAP = "Context only requests are not supported in pytorch backend when overlap is enabled."
_NO_END = (
    "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id for sampling_params"
)


class LLM:
    """One engine."""

    is_pytorch = True

    def __init__(self, model: str | Path, **settings: Any) -> None:
        self._refuse_unknown(settings)
        self.args = LlmArgs(model=str(model), **settings)
        for name, default in (("max_batch_size", 2048), ("max_num_tokens", 8192), ("max_beam_width", 1)):
            if getattr(self.args, name) is None:
                setattr(self.args, name, default)
        if self.args.backend != "pytorch":
            raise Misuse(f"backend={self.args.backend!r}: leave it out; for built engines there is another class")
        config = read_config(Path(model), built=not self.is_pytorch)
        world = self.args.tensor_parallel_size * self.args.pipeline_parallel_size
        if world > number("GPUS", 1):
            raise RuntimeError(f"Only {number('GPUS', 1):g} GPUs are available, but {world} are required.")
        self._end_id = None if self.args.skip_tokenizer_init else end_id_of(config)
        if self.args.guided_decoding_backend is not None and self.args.skip_tokenizer_init:
            raise ValueError("guided decoding needs the tokenizer")
        self._client_ids = itertools.count(1)
        vocab_size = int(config.get("vocab_size", number("VOCAB", 32000)))
        max_seq_len = self.args.max_seq_len or int(config.get("max_position_embeddings", 4096))
        self._executor = Engine(self.args, vocab_size, max_seq_len)
        if self._executor.faults.strikes("construct"):
            self.shutdown()
            raise RuntimeError("Executor worker returned error: CUDA out of memory. Tried to allocate 13.00 GiB.")

    @property
    def faults(self) -> Any:
        """To arm faults in tests that share the process; the real one has nothing of the kind."""
        return self._executor.faults

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,  # noqa: ARG002
        streaming: bool = False,
        kv_cache_retention_config: Any = None,  # noqa: ARG002
        disaggregated_params: Any = None,
        trace_headers: Any = None,  # noqa: ARG002
        scheduling_params: Any = None,  # noqa: ARG002
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Begin a request: raises for what is wrong at once; everything else the result tells."""
        engine = self._running_engine()
        if engine.faults.strikes("generate"):
            raise RuntimeError("the request queue to the worker is broken")
        prompt = token_ids_of(inputs)
        client_id = next(self._client_ids)
        sampling = self._prepare(sampling_params, client_id)
        context = disaggregated_params is not None and disaggregated_params.request_type == "context_only"
        if context and self.is_pytorch:
            sampling.max_tokens = 1  # in the caller's own object, as the real one does
        self._check_length(prompt, sampling, disaggregated_params)
        engine.stats.expect_more()
        engine.events.expect_more()
        sequence = Sequence(
            client_id=client_id,
            prompt=list(prompt),
            sampling=copy.copy(sampling),
            max_tokens=0,
            streaming=streaming,
            disaggregated=copy.copy(disaggregated_params),
            salt=cache_salt or "",
            flavour=make_flavour(check_adapter(self.args, lora_request), check_guide(self.args, sampling)),
        )
        sequence.result = RequestOutput(engine, sequence)
        self._enqueue(engine, sequence)
        return sequence.result

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        feed = self._feed("stats")
        return self._drain(feed, timeout) if feed.result is not None else []

    def get_stats_async(self, timeout: float | None = 2) -> IterationResult | AsyncIterator[dict[str, Any]]:
        feed = self._feed("stats")
        return self._iterate(feed, timeout) if feed.result is not None else _nothing()

    def get_kv_cache_events(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        return self._drain(self._feed("events"), timeout)

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> IterationResult:
        return self._iterate(self._feed("events"), timeout)

    def shutdown(self) -> None:
        """End the engine. Requests in hand hear nothing more."""
        self._executor.stop()

    def __getattr__(self, name: str) -> Any:
        if name == "_check_health" and version() != "1.2":
            return lambda: self._executor.is_healthy
        raise AttributeError(f"'LLM' object has no attribute '{name}'")

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # ------------------------------------------------------------ checks of one request

    def _refuse_unknown(self, settings: dict[str, Any]) -> None:
        fields = LlmArgs._described.fields
        for name in settings:
            known = name in LlmArgs.__dataclass_fields__ and (self.is_pytorch or not fields[name].pytorch_only)
            if not known:
                raise ValueError(f"LLM got invalid argument: {name}")

    def _prepare(self, sampling: Any, client_id: int) -> Any:
        sampling = SamplingParams() if sampling is None else sampling
        if not isinstance(sampling, SamplingParams):
            raise TypeError(f"The sampling_params must be type SamplingParams or None, but got {type(sampling)}")
        if sampling.end_id is None:
            if self._end_id is None:
                raise ValueError(_NO_END)
            sampling.end_id = self._end_id
        sampling.bind(client_id)
        if sampling.n != 1 or sampling.use_beam_search:
            raise Misuse(f"n={sampling.n}, use_beam_search={sampling.use_beam_search}: the fake has one answer only")
        return sampling

    def _check_length(self, prompt: list[int], sampling: Any, params: Any) -> None:
        generation = params is not None and params.request_type == "generation_only"
        if self.args.enable_chunked_prefill:
            return
        if not self.is_pytorch and len(prompt) + sampling.max_tokens > self._executor.max_seq_len:
            raise ValueError(f"The sum of prompt length and max_tokens should not exceed {self._executor.max_seq_len}")
        limit = self.args.max_num_tokens
        if self.is_pytorch and not generation and len(prompt) > limit:
            why = (
                f"The sum of prompt length ({len(prompt)}), query length (0) should not exceed max_num_tokens ({limit})"
            )
            raise ValueError(why) if version() == "1.2" else RequestError(why)

    def _enqueue(self, engine: Engine, sequence: Sequence) -> None:
        """What the worker process checks: what it does not expect ends the engine, not only the request."""
        params = sequence.disaggregated
        if params is not None and not isinstance(params, DisaggregatedParams):
            raise TypeError(f"disaggregated_params must be DisaggregatedParams, but got {type(params)}")
        if error := self._engine_end(engine, sequence):
            engine.fail(error)
            engine.answer(sequence, Response(error=error))
            return
        if sequence.kind == "generation_only":
            check_handle(params)
        sequence.request_id = engine.next_request_id()
        room = engine.max_seq_len - len(sequence.prompt)
        refused = None
        if room <= 0 or sequence.sampling.max_tokens <= 0:
            refused = f"`default_max_tokens` ({room}) and `max_tokens` must be greater than 0"
        elif any(not 0 <= token < engine.vocab_size for token in sequence.prompt):
            refused = "Token ID out of range (1 requests)"
        if refused is not None:
            engine.answer(sequence, Response(error=refused))
            return
        sequence.max_tokens = min(sequence.sampling.max_tokens, room)
        if sequence.kind == "generation_only":
            sequence.max_tokens = max(sequence.max_tokens, 2)  # the length is looked at after the second token only
        engine.submit(sequence)

    def _engine_end(self, engine: Engine, sequence: Sequence) -> Exception | None:
        if sequence.kind == "context_and_generation":
            return None
        if not engine.has_transceiver:
            return AssertionError(_NO_TRANSCEIVER)
        overlaps = self.is_pytorch and not self.args.disable_overlap_scheduler
        return ValueError(_OVERLAP) if sequence.kind == "context_only" and overlaps and version() == "1.2" else None

    # ------------------------------------------------------------ statistics and events

    def _running_engine(self) -> Engine:
        if self._executor.stopped:
            raise RuntimeError("LLM is shutting down")
        return self._executor

    def _feed(self, which: str) -> Feed:
        engine = self._running_engine()
        if engine.faults.strikes(which):
            raise RuntimeError(f"the queue of {which} is broken")
        feed: Feed = getattr(engine, which)
        by_call = self.args.orchestrator_type == "rpc"
        if by_call:
            feed.expect_more()
        assert which == "stats" or feed.result is not None, "KV Event IterationResult is not properly instantiated."
        return feed

    def _drain(self, feed: Feed, timeout: float | None) -> list[dict[str, Any]]:
        if self.args.orchestrator_type == "rpc":
            return feed.fetch(2 if timeout is None else timeout)
        assert feed.result is not None
        feed.result.set_timeout(2 if timeout is None else timeout)
        return feed.result.get_results()

    def _iterate(self, feed: Feed, timeout: float | None) -> IterationResult:
        assert feed.result is not None
        if self.args.orchestrator_type == "rpc":
            for item in feed.fetch(2 if timeout is None else timeout):  # blocks the event loop, as the real one does
                feed.result.put(item)
        feed.result.set_timeout(2 if timeout is None else timeout)
        return feed.result


async def _nothing() -> AsyncIterator[dict[str, Any]]:
    return
    yield {}
