"""The timing model, against sums done by hand."""

from __future__ import annotations

import msgspec
import pytest

from tandem.engines.sim.profiles import GPUS, MODELS, PROFILES, derive, find_profile
from tandem.engines.sim.timing import Timing, prefill_pairs, step_s, transfer_s
from tandem.errors import TandemError

TIMING = Timing(
    overhead_s=1.0,
    weights_s=10.0,
    token_s=1.0,
    pair_s=0.5,
    context_s=0.25,
    kv_bytes_per_token=100.0,
    transfer_latency_s=2.0,
    transfer_bytes_per_s=50.0,
)


def test_a_small_step_takes_as_long_as_reading_the_weights() -> None:
    assert step_s(TIMING, new_tokens=3, pairs=0, context_tokens=0) == 1.0 + 10.0


def test_a_large_step_takes_as_long_as_multiplying_them() -> None:
    assert step_s(TIMING, new_tokens=30, pairs=0, context_tokens=0) == 1.0 + 30.0


def test_attention_comes_on_top() -> None:
    assert step_s(TIMING, new_tokens=3, pairs=4, context_tokens=8) == 1.0 + 10.0 + 2.0 + 2.0


@pytest.mark.parametrize(("cached", "new"), [(0, 1), (0, 7), (5, 3)])
def test_pairs_are_each_new_token_with_all_up_to_itself(cached: int, new: int) -> None:
    assert prefill_pairs(cached, new) == sum(cached + i + 1 for i in range(new))


def test_a_transfer_is_latency_and_bytes() -> None:
    assert transfer_s(TIMING, tokens=3) == 2.0 + 300 / 50


def test_nothing_of_the_instant_profile_takes_time() -> None:
    timing = PROFILES["instant"].timing
    assert step_s(timing, 10_000, 10_000, 10_000) == 0.0
    assert transfer_s(timing, 10_000) == 0.0


def test_a_derived_timing_is_the_stated_formula() -> None:
    """Llama-3.1-8B on one H100: 0.7 of 3.35 TB/s for 16 GB of weights, half of 989 TFLOPS for two operations each."""
    timing = derive(GPUS["h100"], 1, MODELS["llama-3.1-8b"])
    assert timing.weights_s == pytest.approx(16.06e9 / (0.7 * 3.35e12))
    assert timing.token_s == pytest.approx(16.06e9 / (0.5 * 989e12))
    assert timing.kv_bytes_per_token == 128 * 1024


def test_more_gpus_are_faster_but_for_what_they_say_to_each_other() -> None:
    four, eight = (PROFILES[f"h100x{n}-llama-3.3-70b"] for n in (4, 8))
    assert eight.timing.weights_s == pytest.approx(four.timing.weights_s / 2)
    assert eight.timing.overhead_s == four.timing.overhead_s > PROFILES["h100-llama-3.1-8b"].timing.overhead_s
    assert eight.kv_bytes > 2 * four.kv_bytes


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_can_serve_a_prompt_and_says_whence_it_comes(name: str) -> None:
    profile = find_profile(name)
    assert profile.kv_bytes > 8192 * profile.timing.kv_bytes_per_token
    assert profile.source
    assert all(value >= 0 for value in msgspec.structs.astuple(profile.timing))


def test_an_unknown_profile_is_refused_with_those_that_exist() -> None:
    with pytest.raises(TandemError, match=r"profile: 'h1000' is none of a100-llama-3.1-8b, .*instant"):
        find_profile("h1000")
