"""Safetensors files, read and written one tensor at a time.

The library loads and saves whole files in memory; a checkpoint may be larger than that. The format is 8 bytes of header
length (little-endian), a JSON header of ``name → dtype, shape, data_offsets``, then the data
(https://huggingface.co/docs/safetensors). The library still judges every file that is read.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from conversion.fingerprint import WeightsHash
from conversion.source import TensorSpec, refuse

_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Dtypes of weights, and the size of an element."""


def read_tensors(path: Path) -> list[TensorSpec]:
    """The tensors of one file, memory-mapped.

    Raises:
        TandemError: ``invalid_request``: it is missing, truncated, not in this format, or of an unsupported dtype.
    """
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + header_bytes :]
    except (OSError, ValueError, SafetensorError) as error:
        raise refuse(path, f"not a whole safetensors file ({error}); fetch it again") from error
    header.pop("__metadata__", None)
    specs = []
    for name, entry in header.items():
        if entry["dtype"] not in _BYTES:
            raise refuse(path, f"tensor {name} has dtype {entry['dtype']}; supported are {', '.join(_BYTES)}")
        begin, end = entry["data_offsets"]
        specs.append(TensorSpec(name, entry["dtype"], tuple(entry["shape"]), lambda b=begin, e=end: data[b:e]))  # type: ignore[misc]
    return specs


def write_tensors(path: Path, specs: list[TensorSpec], weights_hash: WeightsHash, wrote: Callable[[int], None]) -> None:
    """Write one file. ``wrote`` takes the bytes of every tensor as it is done."""
    # Large elements first, as the library orders them, keeps every tensor aligned to its element.
    specs = sorted(specs, key=lambda spec: (-_BYTES[spec.dtype], spec.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (offset, offset + size_of(spec))}
        offset += size_of(spec)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for spec in specs:
            data = spec.load()
            if memoryview(data).nbytes != size_of(spec):
                raise ValueError(f"{spec.name} has {memoryview(data).nbytes} bytes; expected {size_of(spec)}")
            weights_hash.add(spec, data)
            file.write(data)
            wrote(size_of(spec))


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor."""
    return math.prod(spec.shape) * _BYTES[spec.dtype]
