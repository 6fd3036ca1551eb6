"""Single tensors: there and back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.api.tensors import (
    bytes_tensor,
    floats_tensor,
    ids_tensor,
    number_tensor,
    take_bool,
    take_bytes,
    take_ids,
    take_int,
    take_number,
    take_text,
    take_texts,
    text_tensor,
)
from tandem.errors import TandemError


@given(st.text(), st.binary(), st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_values_survive_the_way_there_and_back(text: str, data: bytes, ids: list[int]) -> None:
    assert take_text({"x": text_tensor(text)}, "x") == text
    assert take_bytes({"x": bytes_tensor(data)}, "x") == data
    assert take_ids({"x": ids_tensor(ids)}, "x") == ids


def test_what_is_left_out_is_nothing() -> None:
    assert take_number({}, "x") is None
    assert take_int({}, "x") is None
    assert take_bool({}, "x") is False
    assert take_text({}, "x") is None
    assert take_texts({}, "x") == []
    assert take_ids({}, "x") is None
    assert take_bytes({}, "x") is None


def test_large_integers_keep_every_digit() -> None:
    assert take_int({"x": number_tensor(2**64 - 1, np.uint64)}, "x") == 2**64 - 1


def test_shapes_and_dtypes() -> None:
    assert floats_tensor([0.5, 1.0]).shape == (1, 2)
    assert floats_tensor([]).dtype == np.float32
    assert ids_tensor(range(3)).tolist() == [[0, 1, 2]]
    assert text_tensor("a").shape == (1, 1)


@pytest.mark.parametrize("count", [0, 2])
def test_one_value_is_one_value(count: int) -> None:
    with pytest.raises(TandemError, match=f"x: {count} values given, exactly 1 expected"):
        take_int({"x": np.zeros((1, count), np.int32)}, "x")


def test_a_text_that_is_no_text_is_refused_with_the_place() -> None:
    with pytest.raises(TandemError, match=r"x: byte 2 \(0xff\) is not valid UTF-8"):
        take_texts({"x": np.array([[b"fine", b"ok\xff"]], dtype=object)}, "x")
