"""The chunk size on machines that are made of numbers: a step takes a fixed time and a time for each token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.engines.torch.pace import AIM, FIRST_CHUNK, LEAST_CHUNK, Pace


def chunks_of(pace: Pace, fixed_s: float, token_s: float, steps: int) -> list[int]:
    """What it reads step by step, decode steps in between."""
    chunks = []
    for _ in range(steps):
        pace.decoded(fixed_s)
        chunks.append(pace.chunk)
        pace.prefilled(chunks[-1], fixed_s + chunks[-1] * token_s)
    return chunks


def test_the_first_chunk_is_a_guess() -> None:
    assert Pace(0.2).chunk == FIRST_CHUNK


@given(
    bound_s=st.floats(0.02, 2.0),
    fixed=st.floats(0.01, 0.4),
    tokens=st.floats(1.1 * LEAST_CHUNK, 5000.0),
    before=st.lists(st.integers(1, 2048), max_size=3),
)
def test_the_time_between_two_tokens_comes_near_the_bound_and_stays_below(
    bound_s: float, fixed: float, tokens: float, before: list[int]
) -> None:
    """Machines for which the right chunk is ``tokens``; before, prompts were read with nobody else running."""
    fixed_s = fixed * bound_s
    token_s = (AIM * bound_s - 2 * fixed_s) / tokens
    pace = Pace(bound_s)
    for n in before:
        pace.prefilled(n, fixed_s + n * token_s)
    chunks = chunks_of(pace, fixed_s, token_s, 40)
    assert all(chunk <= max(tokens, FIRST_CHUNK) * 1.001 for chunk in chunks)
    assert chunks[-1] >= 0.8 * tokens - 1
    assert all(chunk <= tokens * 1.001 for chunk in chunks[-20:])


@given(fixed_s=st.floats(0.1, 10.0), token_s=st.floats(0.0, 1.0))
def test_where_the_bound_cannot_be_kept_prompts_get_on(fixed_s: float, token_s: float) -> None:
    assert chunks_of(Pace(0.2), fixed_s, token_s, 5)[1:] == [LEAST_CHUNK] * 4


def test_a_machine_that_gets_slower_gets_smaller_chunks() -> None:
    pace = Pace(0.2)
    before = chunks_of(pace, 0.02, 0.001, 30)[-1]
    assert chunks_of(pace, 0.02, 0.004, 30)[-1] in range(before // 4 - 2, before // 4 + 2)


def test_a_step_that_takes_no_longer_than_a_decode_step_tells_nothing_of_its_tokens() -> None:
    """Then chunks grow, but not beyond what was tried."""
    pace = Pace(0.2)
    pace.decoded(0.02)
    pace.prefilled(100, 0.01)
    assert pace.chunk == 200
