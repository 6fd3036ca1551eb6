"""The vocabulary in parts says what the whole one says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem.engines.torch.logits import StepLogits, merge, size_of, summarize, to_bytes
from tandem.messages import Partition
from tandem.parallel.partition import vocab_of

VOCABULARY = 23


def through_parts(logits: torch.Tensor, asked: list[int], ranks: int) -> StepLogits:
    """What the leader of a group of ``ranks`` hears."""
    partition = Partition(tensor_parallel_size=ranks)
    parts = []
    for rank in range(ranks):
        own = vocab_of(partition, rank, logits.shape[1])
        parts.append(to_bytes(summarize(logits[:, own.start : own.stop].contiguous(), asked, own.start)))
        assert parts[-1].nbytes == size_of(logits.shape[0], len(asked), len(own))
    return merge(parts, logits.shape[0], len(asked))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sets(st.integers(0, 5)),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_parts_merge_to_the_whole(seed: int, rows: int, ranks: int, asked: set[int], dtype: torch.dtype) -> None:
    """Values are drawn from few, so that the likeliest token is often one of several, in several parts."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (rows, VOCABULARY), generator=generator).to(dtype)
    chosen = sorted(row for row in asked if row < rows)
    merged, expected = through_parts(logits, chosen, ranks), summarize(logits, chosen, 0)
    assert np.array_equal(merged.ids, expected.ids)
    assert np.array_equal(merged.values, expected.values)
    assert merged.whole.tolist() == expected.whole.tolist()
    assert np.array_equal(expected.ids, logits.float().numpy().argmax(-1))


@pytest.mark.parametrize("place", [0, 11, 22])
def test_a_nan_in_any_part_shows(place: int) -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[1, place] = torch.nan
    values = through_parts(logits, [], 3).values
    assert values[0] == 0
    assert np.isnan(values[1])
