"""KV goes from one engine of the stand-in to another as the real library's sources say, or does not."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tensorrt_llm.conftest import MakeLLM
from tests.unit.tensorrt_llm.phases import (
    PROMPT,
    answer,
    blocks_used,
    decode,
    expected,
    prefill,
    sampling,
    start_decode,
    until,
)


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
    assert blocks_used(late) == 6  # the idle loop does not look
    for llm in (late, never):
        await answer(llm, PROMPT[:3], max_tokens=1)
    await until(lambda: blocks_used(late) == 0)
    assert blocks_used(never) == 6


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
    await until(lambda: blocks_used(llm) == 0)


def test_an_abort_ends_what_runs_forgets_what_waits_and_waits_for_transfers(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
):
    asyncio.run(_abort(make_llm(max_batch_size=1), monkeypatch))
