"""Blocks as files: found again, checked, bounded, and no trouble to anybody where the disk is."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tandem.kv.tiers.disk import HEADER_BYTES, DiskStore
from tandem.kv.tiers.host import HostStore
from tandem.kv.tiers.memory import Bytes

BLOCK = 8192
FORMAT, OTHER = b"f" * 16, b"g" * 16


def digest(i: int) -> bytes:
    return i.to_bytes(32, "big")


def data(i: int) -> Bytes:
    return np.random.default_rng(i).integers(0, 256, BLOCK, dtype=np.uint8)


def make(directory: Path, blocks: int = 8, format_id: bytes = FORMAT) -> DiskStore:
    store = DiskStore(directory, blocks * (BLOCK + HEADER_BYTES), BLOCK, format_id)
    store.open()
    return store


def found(store: DiskStore | HostStore, count: int) -> list[int]:
    """Which of the blocks 0 to ``count`` come back; all that do are whole."""
    out = np.empty(BLOCK, dtype=np.uint8)
    here = [i for i in range(count) if store.get(digest(i), out) and (out == data(i)).all()]
    assert here == [i for i in range(count) if store.holds(digest(i))]
    return here


def fill(store: DiskStore | HostStore, count: int) -> list[bool]:
    return [store.put(digest(i), data(i)) for i in range(count)]


def test_a_later_process_finds_the_blocks_of_its_format(tmp_path: Path) -> None:
    first = make(tmp_path / "w")
    assert all(fill(first, 10))
    assert found(first, 10) == [2, 3, 4, 5, 6, 7, 8, 9]
    for i in range(2, 10):  # a second apart; files that are written at once may be of the same time
        os.utime(tmp_path / "w" / FORMAT.hex() / digest(i).hex(), (i, i))
    first.get(digest(2), np.empty(BLOCK, dtype=np.uint8))
    first.close()
    (tmp_path / "w" / FORMAT.hex() / f"{digest(1).hex()}.part").write_bytes(b"torn")
    smaller = make(tmp_path / "w", blocks=3)
    assert found(smaller, 10) == [2, 8, 9], "the least recently used go"
    assert len(list((tmp_path / "w" / FORMAT.hex()).iterdir())) == 3
    smaller.close()
    other = make(tmp_path / "w", format_id=OTHER)
    assert found(other, 10) == []
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == sorted([OTHER.hex(), "lock"])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "corrupt"),
    [
        (lambda path: flip(path, HEADER_BYTES + BLOCK - 1), 1),
        (lambda path: flip(path, HEADER_BYTES - 1), 1),
        (lambda path: flip(path, 20), 1),
        (lambda path: os.truncate(path, HEADER_BYTES + 5), 1),
        (lambda path: path.write_bytes(b""), 1),
        (lambda path: path.write_bytes(path.with_name(digest(1).hex()).read_bytes()), 1),
        (lambda path: path.unlink(), 0),
    ],
    ids=["data", "checksum", "format", "truncated", "empty", "another block", "deleted"],
)
def test_what_was_harmed_is_noticed_and_forgotten(tmp_path: Path, harm: Callable[[Path], None], corrupt: int) -> None:
    store = make(tmp_path)
    fill(store, 3)
    path = tmp_path / FORMAT.hex() / digest(0).hex()
    harm(path)
    assert found(store, 3) == [1, 2]
    assert (store.corrupt, store.errors, path.exists()) == (corrupt, 0, False)
    assert fill(store, 1) == [True]
    assert found(store, 3) == [0, 1, 2]


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    assert (first.errors, second.errors) == (0, 1)
    assert fill(second, 1) == [False]
    assert fill(first, 1) == [True]


def test_a_directory_that_cannot_be_made_is_no_error_to_anybody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = make(tmp_path / "file" / "w")
    assert fill(store, 2) == [False, False]
    assert found(store, 2) == []
    assert store.errors == 1


@contextlib.contextmanager
def no_room(directory: Path, i: int) -> Iterator[None]:
    """The next file of block ``i`` lies on a device that is full."""
    (directory / f"{digest(i).hex()}.part").symlink_to("/dev/full")
    yield


@contextlib.contextmanager
def little_room(_directory: Path, _i: int) -> Iterator[None]:
    """Files end in the middle of a block, as on a disk with no room for the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shortage", [no_room, little_room])
def test_a_full_disk_keeps_what_it_has(
    tmp_path: Path, shortage: Callable[[Path, int], contextlib.AbstractContextManager[None]]
) -> None:
    store = make(tmp_path, blocks=100)
    assert all(fill(store, 5))
    with shortage(tmp_path / FORMAT.hex(), 5):
        assert fill(store, 20) == [True] * 5 + [False] * 15
    assert store.errors == 1, "it does not try again at once"
    assert found(store, 20) == list(range(5))
    assert not list(tmp_path.glob("*/*.part"))


def test_host_memory_gives_its_oldest_to_the_disk(tmp_path: Path) -> None:
    disk = make(tmp_path)
    host = HostStore(np.empty(4 * BLOCK + 9, dtype=np.uint8), BLOCK, below=disk)
    assert all(fill(host, 10))
    assert (host.blocks, disk.blocks) == (4, 6)
    assert found(host, 10) == list(range(10))
    alone = HostStore(np.empty(4 * BLOCK, dtype=np.uint8), BLOCK)
    assert all(fill(alone, 10))
    assert found(alone, 10) == [6, 7, 8, 9]


def test_nothing_that_holds_no_block_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no file of a KV block"):
        make(tmp_path, blocks=0)
    with pytest.raises(ValueError, match="hold no KV block"):
        HostStore(np.empty(BLOCK - 1, dtype=np.uint8), BLOCK)
