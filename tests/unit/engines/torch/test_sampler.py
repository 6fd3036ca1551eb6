"""The sampler against a plain reference in numpy, and against the distribution it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engines.torch.logits import summarize
from tandem.engines.torch.sampler import Choice, choose, sample, uniform, wants_whole_logits
from tandem.engines.torch.sequence import Sequence
from tandem.messages import Generate, Sampling, Stopping

Floats = npt.NDArray[np.float64]


def sequence(
    prompt: list[int] | None = None,
    answer: list[int] | None = None,
    stop: tuple[int, ...] = (),
    min_tokens: int = 0,
    **sampling: Any,
) -> Sequence:
    work = Generate(
        request_id="r",
        token_ids=prompt or [0],
        output_ids=answer or [],
        sampling=Sampling(**sampling),
        stopping=Stopping(max_tokens=1000, min_tokens=min_tokens, stop_token_ids=stop),
    )
    return Sequence.of(work, 0.0, 4)


def choose_all(logits: torch.Tensor, sequences: list[Sequence]) -> list[Choice]:
    """As the engine does: only those rows are shown whole of which more than the likeliest token is wanted."""
    asked = [i for i, s in enumerate(sequences) if wants_whole_logits(s)]
    return choose(summarize(logits, asked, 0), sequences)


def choose_one(logits: Floats, of: Sequence) -> Choice:
    return choose_all(torch.tensor(logits, dtype=torch.float32)[None], [of])[0]


def left_over(logits: Floats, s: Sampling) -> Floats:
    """What the filters leave, written as the papers say it: 0 for what is dropped, the rest sums to 1."""
    scaled = logits / s.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = np.ones(len(p), dtype=bool)
    if s.top_k:
        keep[order[s.top_k :]] = False
    if s.top_p < 1.0:
        mass = np.where(keep, p, 0.0) / p[keep].sum()
        before = np.cumsum(mass[order]) - mass[order]
        keep[order[before >= s.top_p]] = False
    keep &= p >= s.min_p * p.max()
    keep[order[0]] = True
    left = np.where(keep, p, 0.0)
    return left / left.sum()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.0, 0.1, 3.0]),
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 1, 2, 5, 300, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    u=st.floats(0.0, 1.0, exclude_max=True),
)
def test_sample_is_the_inverse_of_the_filtered_distribution(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, 600).astype(np.float32).astype(np.float64)
    settings_ = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = sample(torch.tensor(logits, dtype=torch.float32), settings_, u)
    left = left_over(logits, settings_)
    assert left[token] > 0
    upper = np.cumsum(left)[token]
    assert upper - left[token] - 1e-6 <= u <= upper + 1e-6


def test_frequencies_follow_the_distribution() -> None:
    """20,000 positions of one seed: chi-square of the tokens that top-k leaves (9 degrees of freedom, p = 1e-6)."""
    logits = np.random.default_rng(1).normal(0, 2, 50)
    settings_ = Sampling(temperature=1.3, top_k=10)
    expected = left_over(logits, settings_) * 20_000
    row = torch.tensor(logits, dtype=torch.float32)
    counts = np.bincount([sample(row, settings_, uniform(7, i)) for i in range(20_000)], minlength=50)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 44.8


@pytest.mark.parametrize("temperature", [1e-300, 1e-3])
def test_cold_sampling_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(2).normal(0, 3, 400)
    assert choose_one(logits, sequence(temperature=temperature, seed=1)).token_id == int(logits.argmax())


def test_uniform_is_a_function_of_seed_and_position() -> None:
    assert uniform(3, 5) == uniform(3, 5)
    drawn = {uniform(seed, position) for seed in (-1, 0, 1, 2**63) for position in range(500)}
    assert len(drawn) == 2000
    assert all(0.0 <= u < 1.0 for u in drawn)
    assert abs(np.mean(sorted(drawn)) - 0.5) < 0.03


def test_the_batch_around_a_sequence_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(0, 2, (6, 400)), dtype=torch.float32)
    sequences = [
        sequence([1] * (i + 1), [2] * i, temperature=0.4 * i, top_p=0.9, seed=i, frequency_penalty=0.1 * i)
        for i in range(6)
    ]
    together = choose_all(logits, sequences)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = choose_all(logits[order], [sequences[i] for i in order])
    alone = [choose_all(logits[i : i + 1], [sequences[i]])[0] for i in range(6)]
    assert together == alone
    assert [together[i] for i in order] == shuffled


def test_a_moved_request_draws_the_same() -> None:
    """What counts is the token's absolute position, not how much of the answer came from elsewhere."""
    logits = np.random.default_rng(4).normal(0, 1, 400)
    here = sequence([5, 6], temperature=1.0, seed=9)
    for token in (7, 8, 9):
        here.append(token)
    moved = sequence([5, 6], [7, 8, 9], temperature=1.0, seed=9)
    assert choose_one(logits, here) == choose_one(logits, moved)


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.zeros(400)
    logits[[17, 300]] = 2.0
    assert choose_one(logits, sequence()).token_id == 17
    assert choose_one(logits, sequence(logprobs=0)).token_id == 17


def test_repetition_penalty_weakens_prompt_and_answer() -> None:
    logits = np.full(10, -5.0)
    logits[[1, 2, 3]] = [4.0, 3.9, 3.0]
    assert choose_one(logits, sequence([1], [2], repetition_penalty=1.5)).token_id == 3
    negative = np.full(10, -9.0)
    negative[[1, 2]] = [-1.0, -1.2]
    assert choose_one(negative, sequence([1], repetition_penalty=1.5)).token_id == 2


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits = np.zeros(10)
    logits[[1, 2, 3]] = [3.0, 2.5, 2.2]
    assert choose_one(logits, sequence([1, 1, 1], presence_penalty=1.0)).token_id == 1
    assert choose_one(logits, sequence([0], [1], presence_penalty=1.0)).token_id == 2
    assert choose_one(logits, sequence([0], [1, 1, 2], frequency_penalty=0.35)).token_id == 1 + 1 * (3.0 - 0.7 < 2.2)
    assert choose_one(logits, sequence([0], [1, 1, 2], frequency_penalty=0.45)).token_id == 3


def test_penalised_logprobs() -> None:
    """Penalties are in the log-probabilities, temperature and filters are not."""
    logits = np.random.default_rng(5).normal(0, 1, 100)
    choice = choose_one(logits, sequence([0], [1, 1], presence_penalty=0.5, logprobs=3, temperature=0.1, top_k=1))
    penalised = logits.copy()
    penalised[1] -= 0.5
    expected = penalised - np.log(np.exp(penalised).sum())
    assert choice.logprob is not None
    assert choice.logprob.logprob == pytest.approx(expected[choice.token_id], abs=1e-5)
    best = np.argsort(-expected)[:3]
    assert [token for token, _ in choice.logprob.top] == best.tolist()
    assert [p for _, p in choice.logprob.top] == pytest.approx(expected[best], abs=1e-5)


def test_no_logprobs_unless_asked_for() -> None:
    logits = np.random.default_rng(6).normal(0, 1, 100)
    assert choose_one(logits, sequence(temperature=1.0)).logprob is None
    of_chosen = choose_one(logits, sequence(logprobs=0)).logprob
    assert of_chosen is not None
    assert of_chosen.top == []


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = np.zeros(10)
    logits[[4, 5, 6]] = [9.0, 8.0, 7.0]
    assert choose_one(logits, sequence([0], [1], stop=(4, 5), min_tokens=2)).token_id == 6
    assert choose_one(logits, sequence([0], [1, 1], stop=(4, 5), min_tokens=2)).token_id == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_logits_are_an_error(bad: float) -> None:
    logits = np.zeros(10)
    logits[3] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        choose_one(logits, sequence(temperature=1.0))
