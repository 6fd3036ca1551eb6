"""The stand-in's answers: known beforehand, told as the real library tells them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tensorrt_llm.conftest import VOCAB, MakeLLM
from tests.unit.tensorrt_llm.phases import PROMPT, answer, expected, sampling, start_decode


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
