"""Memory that another process maps: what is found, and what is not taken for it."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from tandem.kv.memory import HostMemory, map_shared
from tandem.messages import SharedMemory, encode

SIZE = 1 << 20


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory(SIZE)


def test_it_starts_as_zeros_and_is_seen_as_it_changes(memory: HostMemory) -> None:
    mapped = map_shared(memory.place)
    assert mapped is not None
    assert mapped.array.shape == (SIZE,)
    assert not mapped.array.any()
    assert not mapped.lease_words.any()
    memory.array[SIZE - 1] = 7
    memory.lease_words[[0, -1]] = 1, 1 << 63
    assert mapped.array[-1] == 7
    assert mapped.lease_words[[0, -1]].tolist() == [1, 1 << 63]
    assert not mapped.array.flags.writeable
    assert not mapped.lease_words.flags.writeable
    assert map_shared(memory.place) is not None  # words and token are in nobody's way


@pytest.mark.parametrize("size", [1, 7, 8, 4095])
def test_words_stand_where_one_store_writes_all_of_one(size: int) -> None:
    memory = HostMemory(size)
    memory.array[:], memory.lease_words[:] = 255, 3
    mapped = map_shared(memory.place)
    assert mapped is not None
    assert (mapped.array == 255).all()
    assert (mapped.lease_words == 3).all()
    assert mapped.lease_words.flags.aligned


def test_another_process_maps_it_and_keeps_it_beyond_its_owner() -> None:
    owner = (
        "import sys; from tandem.kv.memory import HostMemory; from tandem.messages import encode\n"
        f"m = HostMemory({SIZE}); m.array[:] = 3; print(encode(m.place).hex(), flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        place = msgspec.msgpack.decode(bytes.fromhex(process.stdout.readline().decode()), type=SharedMemory)
        mapped = map_shared(place)
        process.kill()
        process.wait()
    assert mapped is not None
    assert (mapped.array == 3).all()
    assert map_shared(place) is None


@pytest.mark.parametrize(
    "change",
    [
        {"token": b"0" * 16},
        {"num_bytes": SIZE - 1},
        {"file": 1 << 20},
        {"pid": 1 << 30},
    ],
)
def test_what_is_not_it_is_not_mapped(memory: HostMemory, change: dict[str, object]) -> None:
    assert map_shared(msgspec.structs.replace(memory.place, **change)) is None


def test_a_number_that_means_something_else_here_is_harmless(memory: HostMemory) -> None:
    reading, writing = os.pipe()
    try:
        for file in (reading, writing, os.open("/dev/null", os.O_RDONLY)):
            assert map_shared(msgspec.structs.replace(memory.place, file=file)) is None
    finally:
        os.close(reading)
        os.close(writing)


def test_its_place_travels(memory: HostMemory) -> None:
    assert msgspec.msgpack.decode(encode(memory.place), type=SharedMemory) == memory.place
