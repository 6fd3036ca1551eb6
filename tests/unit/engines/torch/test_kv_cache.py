"""The paged cache: what is written is read back, and lies where transfers expect it."""

from __future__ import annotations

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


def test_reads_what_was_written(cache: KvCache) -> None:
    """Two sequences in scattered blocks, three layers, each with other contents."""
    tables = torch.tensor([[7, 0, 3], [9, 2, 8]])
    written = torch.randn(LAYERS, 2, 3 * SIZE, HEADS, 2, DIM)
    for sequence, table in enumerate(tables):
        positions = torch.arange(3 * SIZE)
        slots = cache.slot_index(table[positions // SIZE], positions % SIZE)
        for layer in range(LAYERS):
            cache.write(layer, slots, written[layer, sequence])
    for layer in range(LAYERS):
        keys, values = cache.read(layer, cache.piece_index(tables), 2)
        for side, got in enumerate((keys, values)):
            expected = written[layer, :, :, :, side].transpose(1, 2)
            assert torch.equal(got.view(2, HEADS, 3 * SIZE, DIM), expected)


def test_a_block_is_one_piece_of_memory(cache: KvCache) -> None:
    """Copying block_bytes from one block's address to another's moves exactly that block: what a transfer does."""
    table = torch.tensor([[4]])
    offsets = torch.arange(SIZE)
    for layer in range(LAYERS):
        cache.write(layer, cache.slot_index(table[0].repeat(SIZE), offsets), torch.randn(SIZE, HEADS, 2, DIM))
    memory = cache._memory.view(torch.uint8)
    block = cache.block_bytes
    assert memory.numel() == BLOCKS * block
    assert memory.data_ptr() == cache.address
    memory[6 * block : 7 * block] = memory[4 * block : 5 * block]
    for layer in range(LAYERS):
        theirs = cache.read(layer, cache.piece_index(torch.tensor([[6]])), 1)
        ours = cache.read(layer, cache.piece_index(table), 1)
        assert torch.equal(torch.stack(theirs), torch.stack(ours))
        assert torch.count_nonzero(torch.stack(cache.read(layer, cache.piece_index(torch.tensor([[5]])), 1))) == 0


def test_memory_for_no_block_is_an_error() -> None:
    assert blocks_that_fit(1000, 300) == 3
    with pytest.raises(TandemError, match=r"worker\.kv_memory: 299 bytes hold no KV block; one takes 300"):
        blocks_that_fit(299, 300)
