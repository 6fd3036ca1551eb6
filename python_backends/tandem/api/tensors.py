"""Single tensors to Python values and back, with errors that name the tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tandem.errors import TandemError

Array = NDArray[np.generic]
Tensors = Mapping[str, Array]


def take_number(tensors: Tensors, name: str) -> float | None:
    """The one finite number of an optional tensor of one element.

    Raises:
        TandemError: ``invalid_request`` for another number of elements, NaN or infinity.
    """
    value = _take_one(tensors, name)
    if value is None:
        return None
    number = float(value.item())
    if not np.isfinite(number):
        raise TandemError("invalid_request", f"{name}: {number} is not a finite number")
    return number


def take_int(tensors: Tensors, name: str) -> int | None:
    """The one integer of an optional tensor of one element."""
    value = _take_one(tensors, name)
    return None if value is None else int(value.item())


def take_bool(tensors: Tensors, name: str) -> bool:
    """The one boolean of an optional tensor; False when it is left out."""
    return bool(_take_one(tensors, name))


def take_text(tensors: Tensors, name: str) -> str | None:
    """The one UTF-8 string of an optional STRING tensor.

    Raises:
        TandemError: ``invalid_request``, with the place of the first byte that is not UTF-8.
    """
    value = _take_one(tensors, name)
    return None if value is None else _as_text(value, name)


def take_texts(tensors: Tensors, name: str) -> list[str]:
    """All strings of an optional STRING tensor."""
    array = tensors.get(name)
    return [] if array is None else [_as_text(value, name) for value in array.reshape(-1)]


def take_ids(tensors: Tensors, name: str) -> list[int] | None:
    """All token ids of an optional integer tensor."""
    array = tensors.get(name)
    return None if array is None else [int(value) for value in array.reshape(-1).tolist()]


def take_bytes(tensors: Tensors, name: str) -> bytes | None:
    """The bytes of an optional UINT8 tensor."""
    array = tensors.get(name)
    return None if array is None else array.tobytes()


def text_tensor(text: str | bytes) -> Array:
    """A STRING tensor, shape [1, 1]."""
    data = text if isinstance(text, bytes) else text.encode()
    return np.array([[data]], dtype=np.object_)


def ids_tensor(ids: Iterable[int]) -> Array:
    """An INT32 tensor, shape [1, n]."""
    return np.fromiter(ids, dtype=np.int32)[np.newaxis]


def number_tensor(value: float, dtype: type[np.generic]) -> Array:
    """A tensor of one number, shape [1, 1]."""
    return np.array([[value]], dtype=dtype)


def floats_tensor(values: Iterable[float]) -> Array:
    """An FP32 tensor, shape [1, n]."""
    return np.fromiter(values, dtype=np.float32)[np.newaxis]


def bytes_tensor(data: bytes) -> Array:
    """A UINT8 tensor, shape [1, n]."""
    return np.frombuffer(data, dtype=np.uint8)[np.newaxis]


def _take_one(tensors: Tensors, name: str) -> np.generic | None:
    array = tensors.get(name)
    if array is None:
        return None
    flat = array.reshape(-1)
    if flat.size != 1:
        raise TandemError("invalid_request", f"{name}: {flat.size} values given, exactly 1 expected")
    return flat[0]  # type: ignore[no-any-return]


def _as_text(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    assert isinstance(value, bytes)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise TandemError(
            "invalid_request", f"{name}: byte {error.start} (0x{value[error.start]:02x}) is not valid UTF-8"
        ) from error
