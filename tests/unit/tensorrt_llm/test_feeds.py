"""The stand-in's statistics and KV events can be read once, when there are some."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.tensorrt_llm.conftest import MakeLLM
from tests.unit.tensorrt_llm.phases import PROMPT, answer, expected, prefill, sampling, take


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
