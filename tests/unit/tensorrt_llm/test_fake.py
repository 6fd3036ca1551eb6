"""The stand-in does what the real library's sources say, above all where that is not what one would expect."""

from __future__ import annotations

import asyncio
import importlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tensorrt_llm_contract import read_contract
from tests.unit.tensorrt_llm.conftest import VOCAB, MakeLLM
from tests.unit.tensorrt_llm.phases import answer, decode, prefill, sampling, start_decode

PROMPT = list(range(10, 33))


def expected(count: int, prompt: list[int] = PROMPT, **more: Any) -> list[int]:
    from tensorrt_llm._tokens import expected_answer

    return expected_answer(prompt, count, VOCAB, **more)


def of(llm: Any, what: str) -> Any:
    """A figure of the engine that the library does not tell."""
    return getattr(llm._executor._blocks, what)


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def take(feed: Any, count: int) -> list[Any]:
    return [await anext(feed) for _ in range(count)]


# ---------------------------------------------------------------- settings


def test_settings_that_the_real_classes_refuse_are_refused(fake: Any, make_llm: MakeLLM):
    from tensorrt_llm.llmapi import CacheTransceiverConfig, KvCacheConfig

    for wrong in (
        lambda: KvCacheConfig(block_size=4),
        lambda: KvCacheConfig(free_gpu_memory_fraction=1.5),
        lambda: CacheTransceiverConfig(backend="ucx"),
        lambda: CacheTransceiverConfig(backend="UCX", kv_transfer_timeout_ms=0),
        lambda: make_llm(max_model_len=5),
        lambda: make_llm(max_batch_size="many"),
        lambda: fake.DisaggregatedParams(request_type="prefill"),
        lambda: fake.SamplingParams(top_p=2.0),
    ):
        with pytest.raises(
            ValueError, match=r"not permitted|less than|DEFAULT|greater|invalid argument|valid int|Unkn|ran"
        ):
            wrong()
    with pytest.raises(TypeError, match="unexpected keyword"):
        fake.SamplingParams(max_new_tokens=5)
    with pytest.raises(RuntimeError, match="Only 1 GPUs are available, but 2"):
        make_llm(tensor_parallel_size=2)


@pytest.mark.parametrize("fake", ["1.2", "1.3", "1.4"], indirect=True)
def test_every_class_is_where_the_description_says_and_nowhere_else(fake: Any):
    for name, described in read_contract().items():
        for module, versions in described.places().items():
            there = hasattr(importlib.import_module(module), "LLM" if name == "BuiltEngineLLM" else name)
            assert there == any(fake.__version__.startswith(version) for version in versions), (module, name)


@pytest.mark.parametrize(
    ("fake", "number", "shared_id"), [("1.2", "1.2.1", False), ("1.4", "1.4.0rc1", True)], indirect=["fake"]
)
def test_a_version_has_its_own_fields_and_defaults(fake: Any, make_llm: MakeLLM, number: str, shared_id: bool):
    from tensorrt_llm.llmapi import CacheTransceiverConfig

    assert fake.__version__ == number
    assert ("disagg_request_id" in fake.DisaggregatedParams.__dataclass_fields__) == shared_id
    assert CacheTransceiverConfig().kv_transfer_timeout_ms == (60_000 if shared_id else None)
    assert hasattr(make_llm(), "_check_health") == shared_id


# ---------------------------------------------------------------- one phase


async def _stream(llm: Any) -> None:
    output = llm.generate_async(PROMPT, sampling_params=sampling(5), streaming=True)
    seen = [(id(each), list(each.outputs[0].token_ids), each.outputs[0].token_ids_diff) async for each in output]

    assert {identity for identity, _, _ in seen} == {id(output)}
    assert [tokens for _, tokens, _ in seen] == [expected(n + 1) for n in range(5)]
    assert [token for _, _, new in seen for token in new] == expected(5)
    assert output.outputs[0].finish_reason == "length"


def test_an_answer_grows_in_one_object_and_is_known_beforehand(make_llm: MakeLLM):
    asyncio.run(_stream(make_llm()))


async def _resume(llm: Any) -> None:
    assert await answer(llm, PROMPT + expected(3), max_tokens=2) == expected(5)[3:]
    sampled = await answer(llm, PROMPT, max_tokens=4, temperature=1.0, seed=7)
    assert sampled == expected(4, seed=7) != expected(4)
    stopped = await llm.generate_async(PROMPT, sampling_params=sampling(9, stop_token_ids=[expected(3)[2]]))
    assert (stopped.outputs[0].token_ids, stopped.outputs[0].finish_reason) == (expected(2), "stop")


def test_an_answer_follows_from_text_and_seed_alone_and_loses_its_stop_token(make_llm: MakeLLM):
    asyncio.run(_resume(make_llm()))


def test_without_an_event_loop_only_blocking_calls_work(make_llm: MakeLLM):
    llm = make_llm()
    output = llm.generate_async(PROMPT, sampling_params=sampling(3))

    with pytest.raises(AssertionError, match="event loop was not present"):
        asyncio.run(output.aresult())
    assert output.result().outputs[0].token_ids == expected(3)


async def _misuse(llm: Any) -> None:
    shared = sampling(9)
    first = await prefill_with(llm, shared)
    assert shared.max_tokens == 1  # written into the caller's own
    with pytest.raises(AssertionError, match="copy them"):
        llm.generate_async(PROMPT, sampling_params=shared)
    first.outputs[0].disaggregated_params.opaque_state = None
    with pytest.raises(AssertionError, match="opaque_state"):
        start_decode(llm, PROMPT, first.outputs[0].disaggregated_params)


async def prefill_with(llm: Any, params: Any) -> Any:
    from tensorrt_llm import DisaggregatedParams

    context = DisaggregatedParams(request_type="Context_Only")
    return await llm.generate_async(PROMPT, sampling_params=params, disaggregated_params=context)


def test_what_the_real_one_would_take_and_get_wrong_is_refused(make_llm: MakeLLM):
    asyncio.run(_misuse(make_llm()))


@pytest.mark.parametrize(("fake", "kind"), [("1.2", ValueError), ("1.3", RuntimeError)], indirect=["fake"])
def test_a_prompt_over_the_limit_is_refused_at_once(make_llm: MakeLLM, kind: type[Exception]):
    with pytest.raises(kind, match="should not exceed max_num_tokens"):
        make_llm(max_num_tokens=8).generate_async(PROMPT, sampling_params=sampling())
    assert asyncio.run(answer(make_llm(max_num_tokens=8, enable_chunked_prefill=True), PROMPT)) == expected(6)


# ---------------------------------------------------------------- two phases


def test_kv_made_in_one_process_is_fetched_by_another_once(fake: Any, make_llm: MakeLLM, model_dir: Path):
    script = Path(__file__).with_name("phases.py")
    command = [sys.executable, str(script), str(model_dir), ",".join(map(str, PROMPT))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = pickle.load(process.stdout)

        def handle() -> Any:
            return fake.DisaggregatedParams(**said)

        llm, hasty = make_llm(timeout_ms=60_000), make_llm(timeout_ms=50)
        assert said["first_gen_tokens"] == expected(1)
        # The first token is told again; the others follow from the KV that was fetched, not from the prompt.
        assert asyncio.run(decode(llm, PROMPT, handle())) == expected(6)
        with pytest.raises(RuntimeError, match="timed out"):
            asyncio.run(decode(hasty, PROMPT, handle()))
        process.kill()
    with pytest.raises(RuntimeError, match="Error in kv cache transfer for generation requests"):
        asyncio.run(decode(llm, PROMPT, handle()))


async def _first_token_ends(llm: Any) -> None:
    stopped = await prefill(llm, PROMPT, stop_token_ids=expected(1))
    assert stopped.outputs[0].finish_reason == "length"  # that it was the only token allowed is noticed first
    output = await prefill(llm, PROMPT, end_id=expected(1)[0])
    assert (output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("stop", expected(1))
    assert output.outputs[0].disaggregated_params.opaque_state is None
    handle = (await prefill(llm, PROMPT)).outputs[0].disaggregated_params
    handle.opaque_state = handle.opaque_state.replace(b"1.2", b"1.3")
    with pytest.raises(RuntimeError, match="Error in kv cache transfer"):
        await decode(llm, PROMPT, handle)


def test_no_kv_is_kept_where_the_first_token_ends_the_answer_and_other_layouts_do_not_fit(make_llm: MakeLLM):
    asyncio.run(_first_token_ends(make_llm()))


async def _pinned(late: Any, never: Any) -> None:
    for llm in (late, never):
        output = await prefill(llm, PROMPT)
        output.abort()  # finished: nothing is heard of it, and nothing is freed
    await asyncio.sleep(0.1)
    assert of(late, "used") == 6  # the idle loop does not look
    for llm in (late, never):
        await answer(llm, PROMPT[:3], max_tokens=1)
    await until(lambda: of(late, "used") == 0)
    assert of(never, "used") == 6


def test_kv_that_nobody_fetches_is_held_until_the_timeout_and_without_one_for_ever(make_llm: MakeLLM):
    asyncio.run(_pinned(make_llm(timeout_ms=50), make_llm(timeout_ms=None)))


@pytest.mark.parametrize("fake", ["1.2", "1.3"], indirect=True)
def test_log_probabilities_need_those_of_the_first_token_handed_over(fake: Any, make_llm: MakeLLM):
    async def both() -> list[Any]:
        llm = make_llm()
        handle = (await prefill(llm, PROMPT, logprobs=1)).outputs[0].disaggregated_params
        output = await start_decode(llm, PROMPT, handle, logprobs=1, max_tokens=3)
        return [next(iter(each)) for each in output.outputs[0].logprobs]

    if fake.__version__ == "1.2.1":
        with pytest.raises(AssertionError):
            asyncio.run(both())
    else:
        assert asyncio.run(both()) == expected(3)


# ---------------------------------------------------------------- abort


async def _abort(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = llm.generate_async(PROMPT, sampling_params=sampling(200), streaming=True)
    await anext(running)
    queued = llm.generate_async(PROMPT, sampling_params=sampling(200))
    queued.abort()
    running.abort()
    await running
    assert running.outputs[0].finish_reason == "cancelled"
    with pytest.raises(asyncio.TimeoutError):  # taken out of the queue without a word
        await asyncio.wait_for(queued.aresult(), 0.05)
    monkeypatch.setenv("FAKE_TRTLLM_TRANSFER_MS", "50")
    fetching = start_decode(llm, PROMPT, (await prefill(llm, PROMPT)).outputs[0].disaggregated_params)
    await until(lambda: llm._executor._active)
    fetching.abort()
    await fetching
    assert fetching.outputs[0].finish_reason == "cancelled"
    assert fetching._sequence.fetch.kv is not None  # not before its KV had come
    await answer(llm, PROMPT[:3], max_tokens=1)
    await until(lambda: of(llm, "used") == 0)


def test_an_abort_ends_what_runs_forgets_what_waits_and_waits_for_transfers(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
):
    asyncio.run(_abort(make_llm(max_batch_size=1), monkeypatch))


# ---------------------------------------------------------------- statistics and events


async def _feeds(llm: Any) -> None:
    with pytest.raises(AssertionError, match="not properly instantiated"):
        llm.get_kv_cache_events_async()
    await answer(llm, PROMPT, max_tokens=3)
    events = [each async for each in llm.get_kv_cache_events_async(timeout=0.05)]
    assert [each["event_id"] for each in events] == list(range(len(events)))
    assert events[0]["data"]["type"] == "created"
    blocks = [block for each in events[1:] for block in each["data"]["blocks"]]
    assert [token["token_id"] for block in blocks for token in block["tokens"]] == (PROMPT + expected(2))
    assert len(blocks[-1]["tokens"]) == 1  # the last one is stored though it is not full
    statistics = await take(llm.get_stats_async(timeout=60), 3)
    assert [each["iter"] for each in statistics] == [1, 2, 3]
    assert statistics[0]["inflightBatchingStats"]["numCtxTokens"] == len(PROMPT)
    llm.generate_async(PROMPT[:2], sampling_params=sampling(2))
    llm._executor.events.result.mark_undone()
    assert (await prefill(llm, PROMPT)).cached_tokens == 20


def test_feeds_begin_with_the_first_request_and_tell_everything_once(make_llm: MakeLLM):
    asyncio.run(_feeds(make_llm(enable_iter_perf_stats=True)))


async def _dry(llm: Any) -> None:
    await answer(llm, PROMPT, max_tokens=2)
    await take(llm.get_stats_async(timeout=60), 2)
    assert [each async for each in llm.get_stats_async(timeout=0.01)] == []
    llm._executor.stats.tell({"iter": 99})
    assert [each async for each in llm.get_stats_async(timeout=60)] == []  # dry once, dry until the next request
    await answer(llm, PROMPT)
    assert (await anext(llm.get_stats_async()))["iter"] == 99


def test_a_feed_that_ran_dry_stays_so_until_the_next_request(make_llm: MakeLLM):
    asyncio.run(_dry(make_llm(enable_iter_perf_stats=True)))


def test_where_the_orchestrator_is_rpc_feeds_are_fetched_by_call(make_llm: MakeLLM):
    llm = make_llm(orchestrator_type="rpc", enable_iter_perf_stats=True)
    asyncio.run(answer(llm, PROMPT, max_tokens=2))

    found = llm.get_stats(timeout=60)
    while len(found) < 2:
        found += llm.get_stats(timeout=60)
    assert [each["iter"] for each in found] == [1, 2]
    assert llm.get_stats(timeout=0.01) == []


async def _evict(llm: Any) -> None:
    other = [token + 100 for token in PROMPT]
    for prompt in (PROMPT, other, PROMPT):
        await answer(llm, prompt, max_tokens=2)
    events = [each["data"] async for each in llm.get_kv_cache_events_async(timeout=0.05)]
    stored = {block["block_hash"] for each in events if each["type"] == "stored" for block in each["blocks"]}
    removed = {name for each in events if each["type"] == "removed" for name in each["block_hashes"]}
    assert removed
    assert removed <= stored


def test_blocks_are_given_up_where_there_is_need_of_room(make_llm: MakeLLM):
    asyncio.run(_evict(make_llm(cache={"max_tokens": 32})))


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("generate", "request queue"),
        ("context", "out of memory"),
        ("transfer_lost", "timed out"),
        ("transfer_refused", "Error in kv cache transfer for generation requests"),
        ("generation", "illegal memory access"),
        ("fatal", "CUDA error"),
        ("stats", "queue of stats"),
    ],
)
def test_a_fault_strikes_where_it_is_asked_for_and_once_where_once_is_asked(make_llm: MakeLLM, fault: str, why: str):
    async def whole(llm: Any) -> list[int]:
        handle = (await prefill(llm, PROMPT)).outputs[0].disaggregated_params
        tokens = await decode(llm, PROMPT, handle)
        llm.get_stats_async()
        return tokens

    llm = make_llm(timeout_ms=100 if fault == "transfer_lost" else 60_000)
    llm.faults.arm(fault, 1)
    with pytest.raises(RuntimeError, match=why):
        asyncio.run(whole(llm))
    if fault == "fatal":
        with pytest.raises(RuntimeError, match="shutting down"):
            asyncio.run(whole(llm))
    else:
        assert asyncio.run(answer(llm, PROMPT)) == expected(6)


def test_an_engine_may_fail_to_build_or_end_its_process(
    make_llm: MakeLLM, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_TRTLLM_FAULTS", "construct:1")
    with pytest.raises(RuntimeError, match="out of memory"):
        make_llm()
    monkeypatch.setenv("FAKE_TRTLLM_FAULTS", "die")
    script = Path(__file__).with_name("phases.py")
    died = subprocess.run(
        [sys.executable, str(script), str(model_dir), "5,6"], timeout=60, capture_output=True, check=False
    )
    assert died.returncode == 134


async def _unanswered(llm: Any) -> None:
    handle = (await prefill(llm, PROMPT)).outputs[0].disaggregated_params
    output = start_decode(llm, PROMPT, handle)
    await until(lambda: llm._executor._active)
    output.abort()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(output.aresult(), 0.2)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_lost_transfer_may_go_unanswered_even_after_its_timeout(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, blocking: bool
):
    monkeypatch.setenv("FAKE_TRTLLM_BLOCKING_TRANSFERS", str(int(blocking)))
    llm = make_llm(timeout_ms=50)
    llm.faults.arm("transfer_lost")
    llm.faults.arm("transfer_stuck", 0 if blocking else 1)
    asyncio.run(_unanswered(llm))


@pytest.mark.parametrize("missing", ["overlap", "transceiver"])
def test_a_context_request_ends_an_engine_that_is_not_set_up_for_it(make_llm: MakeLLM, missing: str):
    settings = {"overlap": {"disable_overlap_scheduler": False}, "transceiver": {"cache_transceiver_config": None}}
    llm = make_llm(**settings[missing])

    with pytest.raises((ValueError, AssertionError), match=r"overlap is enabled|kv_cache_transceiver is disabled"):
        asyncio.run(prefill(llm, PROMPT))
    with pytest.raises(RuntimeError, match="shutting down"):
        llm.generate_async(PROMPT, sampling_params=sampling())


# ---------------------------------------------------------------- adapters, guides, built engines


async def _flavours(llm: Any, adapter: Path) -> None:
    from tensorrt_llm._tokens import make_flavour
    from tensorrt_llm.executor import LoRARequest
    from tensorrt_llm.llmapi import GuidedDecodingParams

    adapted = llm.generate_async(PROMPT, sampling_params=sampling(3), lora_request=LoRARequest("a", 3, str(adapter)))
    assert (await adapted).outputs[0].token_ids == expected(3, flavour=make_flavour(lora_id=3))
    guide = GuidedDecodingParams(regex="[0-9]+")
    assert await answer(llm, PROMPT, max_tokens=3, guided_decoding=guide) == expected(
        3, flavour=make_flavour(guide="[0-9]+")
    )


def test_adapters_and_guides_change_an_answer_and_need_an_engine_that_was_told_of_them(
    fake: Any, make_llm: MakeLLM, model_dir: Path
):
    from tensorrt_llm.executor import LoRARequest

    (model_dir / "adapter_config.json").write_text(json.dumps({"r": 8}))
    with fake.LLM(model_dir, lora_config={"max_lora_rank": 8}, guided_decoding_backend="xgrammar") as llm:
        asyncio.run(_flavours(llm, model_dir))
    with pytest.raises(ValueError, match="does not exist"):
        LoRARequest("a", 3, "/nowhere")
    with pytest.raises(AssertionError, match="without lora_config"):
        make_llm().generate_async(PROMPT, sampling_params=sampling(), lora_request=LoRARequest("a", 3, str(model_dir)))


def test_a_built_engine_has_a_class_of_its_own_with_fewer_settings(fake: Any, tmp_path: Path):
    from tensorrt_llm._tensorrt_engine import LLM

    shape = {"pretrained_config": {"vocab_size": VOCAB}, "build_config": {"max_seq_len": 64}}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with LLM(tmp_path, skip_tokenizer_init=True) as llm:
        assert asyncio.run(answer(llm, PROMPT)) == expected(6)
    with pytest.raises(ValueError, match="invalid argument: disable_overlap_scheduler"):
        LLM(tmp_path, disable_overlap_scheduler=True)
    with pytest.raises(ValueError, match="a built engine, not a checkpoint"):
        fake.LLM(tmp_path)
