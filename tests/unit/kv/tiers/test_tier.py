"""The writer and the reader against changes of hands at the worst moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tandem.kv.prefix_cache import Chain, PrefixCache
from tandem.kv.tiers.disk import DiskStore
from tandem.kv.tiers.memory import Bytes
from tandem.kv.tiers.tier import SecondTier
from tandem.kv.tiers.worth import Worth

SIZE, BLOCK_BYTES, BLOCKS, DEADLINE_S = 2, 256, 8, 20.0


class Memory:
    """KV memory; what is set as ``meanwhile`` happens once in the midst of a copy."""

    def __init__(self) -> None:
        self.block_bytes = BLOCK_BYTES
        self.content = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        self.meanwhile: Callable[[], None] | None = None

    def allocate(self, num_bytes: int) -> Bytes:
        return np.empty(num_bytes, dtype=np.uint8)

    def copy_out(self, block: int, to: Bytes) -> None:
        half = BLOCK_BYTES // 2
        to[:half] = self.content[block, :half]
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        to[half:] = self.content[block, half:]

    def copy_in(self, block: int, data: Bytes) -> None:
        self.content[block] = data


class Worker:
    """A pool, its memory and its second tier."""

    def __init__(self, directory: Path, seconds_per_token: float) -> None:
        self.pool, self.memory = PrefixCache(BLOCKS), Memory()
        self.disk = DiskStore(directory, 1 << 20, BLOCK_BYTES, b"f" * 16)
        worth = Worth(SIZE, lambda: seconds_per_token)
        self.tier = SecondTier(self.pool, self.memory, self.memory, None, self.disk, worth)

    def compute(self, tokens: list[int]) -> tuple[Chain, list[int]]:
        """A sequence that computes all of its blocks; it holds them."""
        chain = Chain(tokens, SIZE, "")
        blocks, _ = self.pool.reserve(chain, len(tokens) // SIZE, 0)
        for i, block in enumerate(blocks):
            self.memory.content[block] = tokens[2 * i]
        self.pool.store(chain, blocks, 0, len(blocks))
        return chain, blocks


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, seconds_per_token=5.0)
    yield worker
    worker.tier.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.001)


def read_back(worker: Worker, chain: Chain, count: int) -> list[int]:
    """What the tier brings back of a chain's first blocks: the number that each is full of."""
    blocks = worker.pool.allocate(count)
    worker.memory.content[blocks] = 0
    read = worker.tier.begin_read(chain, blocks, 0, count)
    if read is None:
        arrived = 0
    else:
        until(lambda: read.is_over(0.0))
        arrived = read.close()
        worker.tier.read_ended(read, arrived)
    contents = [set(worker.memory.content[block].tolist()) for block in blocks[:arrived]]
    worker.pool.free(blocks)
    assert all(len(content) == 1 for content in contents), "a torn block"
    return [content.pop() for content in contents]


def test_a_block_that_changes_hands_while_it_is_copied_is_not_kept(worker: Worker) -> None:
    """Another request takes it, and names what it has written: the copy is half of the one, half of the other."""
    chain, blocks = worker.compute([11, 11, 12, 12, 13, 13, 14, 14])
    worker.pool.free(blocks)
    hold = worker.pool.allocate(4)  # no room is left: the writer begins
    taken: list[tuple[Chain, list[int]]] = []

    def take() -> None:
        worker.pool.free(hold)
        taken.append(worker.compute([t for t in range(21, 29) for _ in range(SIZE)]))

    worker.memory.meanwhile = take
    worker.tier.start()
    until(lambda: bool(taken))
    new_chain, new_blocks = taken[0]
    assert len(new_blocks) == BLOCKS, "everything was taken"
    worker.pool.free(new_blocks)
    until(lambda: worker.disk.blocks >= 4)
    assert read_back(worker, chain, 4) == []
    assert worker.tier.load.dropped == 4
    until(lambda: not worker.pool.oldest_idle(worker.tier._ahead, worker.disk.holds))
    assert all(content > 20 for content in read_back(worker, new_chain, 8))


def test_what_comes_after_nobody_waits_is_not_written(worker: Worker) -> None:
    """A read that was given up, whose blocks have gone to somebody else."""
    chain, blocks = worker.compute([11, 11, 12, 12, 13, 13, 14, 14])
    worker.pool.free(blocks)
    hold = worker.pool.allocate(4)
    worker.tier.start()
    until(lambda: worker.disk.blocks == 4)
    worker.pool.free(hold)
    arrived, go_on = threading.Event(), threading.Event()
    get = worker.disk.get

    def get_slowly(digest: bytes, out: Bytes) -> bool:
        arrived.set()
        assert go_on.wait(DEADLINE_S)
        return get(digest, out)

    worker.disk.get = get_slowly  # type: ignore[method-assign]
    mine = worker.pool.allocate(4)
    read = worker.tier.begin_read(chain, mine, 0, 4)
    assert read is not None
    assert arrived.wait(DEADLINE_S)
    assert read.close() == 0
    worker.memory.content[mine] = 99
    go_on.set()
    until(lambda: not worker.tier._waiting)
    assert (worker.memory.content[mine] == 99).all()


def test_a_chain_is_read_as_far_as_it_goes(worker: Worker) -> None:
    chain, blocks = worker.compute([11, 11, 12, 12, 13, 13, 14, 14])
    worker.pool.free(blocks)
    hold = worker.pool.allocate(4)
    worker.tier.start()
    until(lambda: worker.disk.blocks == 4)
    worker.pool.free(hold)
    assert read_back(worker, chain, 4) == [11, 12, 13, 14]
    longer = Chain([11, 11, 12, 12, 13, 13, 0, 0], SIZE, "")
    assert read_back(worker, longer, 4) == [11, 12, 13]
    assert read_back(worker, Chain([11, 11], SIZE, "tenant"), 1) == []
    (path,) = worker.disk._directory.glob(chain.digest(1).hex())
    path.unlink()
    assert read_back(worker, chain, 4) == [11]
    load = worker.tier.load
    assert (load.hits, load.misses) == (8, 1 + 1 + 3)
