"""The paged cache: what is written is read back, and lies where transfers expect it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import KvCache, blocks_that_fit
from tandem.errors import TandemError

LAYERS, HEADS, SIZE, DIM, BLOCKS = 3, 2, 4, 8, 10


@pytest.fixture
def cache() -> KvCache:
    config = ModelConfig(
        family="llama",
        hidden_size=32,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=HEADS,
        head_dim=DIM,
        intermediate_size=32,
        vocab_size=32,
        context=64,
        rms_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        tied_embeddings=True,
    )
    return KvCache(config, SIZE, BLOCKS, torch.float32, torch.device("cpu"))


def read(cache: KvCache, layer: int, tables: list[list[int]]) -> torch.Tensor:
    """Keys and values of sequences: [2, sequences, kv_heads, tokens, head_dim]."""
    pieces = cache.piece_index(np.array(tables)).transpose(2, 0, 3, 1).reshape(2, len(tables) * HEADS, -1)
    return torch.stack(cache.read(layer, torch.tensor(pieces))).view(2, len(tables), HEADS, -1, DIM)


def write(cache: KvCache, layer: int, table: list[int], keys_values: torch.Tensor) -> None:
    """[tokens, kv_heads, 2, head_dim] into the blocks of one sequence."""
    positions = np.arange(len(keys_values))
    slots = cache.slot_index(np.array(table)[positions // SIZE], positions % SIZE)
    cache.write(layer, torch.tensor(slots), keys_values)


def test_reads_what_was_written(cache: KvCache) -> None:
    """Two sequences in scattered blocks, three layers, each with other contents."""
    tables = [[7, 0, 3], [9, 2, 8]]
    written = torch.randn(LAYERS, 2, 3 * SIZE, HEADS, 2, DIM)
    for layer in range(LAYERS):
        for sequence, table in enumerate(tables):
            write(cache, layer, table, written[layer, sequence])
    for layer in range(LAYERS):
        assert torch.equal(read(cache, layer, tables), written[layer].permute(3, 0, 2, 1, 4))


def test_a_block_is_one_piece_of_memory(cache: KvCache) -> None:
    """Copying block_bytes from one block's address to another's moves exactly that block: what a transfer does."""
    for layer in range(LAYERS):
        write(cache, layer, [4], torch.randn(SIZE, HEADS, 2, DIM))
    memory, size = cache._memory.view(torch.uint8), cache.block_bytes
    assert memory.numel() == BLOCKS * size
    assert memory.data_ptr() == cache.address
    memory[6 * size : 7 * size] = memory[4 * size : 5 * size]
    for layer in range(LAYERS):
        assert torch.equal(read(cache, layer, [[6]]), read(cache, layer, [[4]]))
        assert torch.count_nonzero(read(cache, layer, [[4]])) == 2 * HEADS * SIZE * DIM
        assert torch.count_nonzero(read(cache, layer, [[5]])) == 0


def test_memory_for_no_block_is_an_error() -> None:
    assert blocks_that_fit(1000, 300) == 3
    with pytest.raises(TandemError, match=r"worker\.kv_memory: 299 bytes hold no KV block; one takes 300"):
        blocks_that_fit(299, 300)
