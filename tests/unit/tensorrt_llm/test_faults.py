"""The stand-in fails where it is asked to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tensorrt_llm.conftest import MakeLLM
from tests.unit.tensorrt_llm.phases import PROMPT, answer, decode, expected, prefill, sampling, start_decode, until


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
