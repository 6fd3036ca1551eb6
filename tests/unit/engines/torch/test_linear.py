"""Matrix products: the packed one beside torch's own, for any number of rows, with few numbers of rows inside."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tandem.engines.torch.linear import PackedLinear, make_linear, packs, padded_rows


def test_rows_are_filled_up_by_an_eighth_at_most_to_few_numbers() -> None:
    filled = [padded_rows(rows) for rows in range(1, 4097)]
    assert filled[:32] == list(range(1, 33))
    assert all(rows <= more <= rows * 9 / 8 for rows, more in enumerate(filled, start=1))
    assert filled == sorted(filled)
    assert len(set(filled)) == 32 + 7 * 8
    assert all(padded_rows(rows) == rows for rows in filled)


@pytest.mark.parametrize("rows", [1, 32, 33, 65, 100, 513])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_quickest_is_torchs_own_product(rows: int, has_bias: bool) -> None:
    """That is the packed one, but on a CPU that has none of it."""
    draw = torch.Generator().manual_seed(rows)
    weight = torch.randn(48, 64, generator=draw).bfloat16()
    bias = torch.randn(48, generator=draw).bfloat16() if has_bias else None
    x, residual = torch.randn(rows, 64, generator=draw).bfloat16(), torch.randn(rows, 48, generator=draw).bfloat16()
    expected = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    packed = make_linear(weight, bias)
    assert isinstance(packed, PackedLinear) == packs()
    with torch.inference_mode():
        torch.testing.assert_close(packed(x).float(), expected, rtol=0.01, atol=0.05)
        torch.testing.assert_close(packed.plus(x, residual).float(), expected + residual.float(), rtol=0.01, atol=0.05)
        assert packed(x).is_contiguous()
