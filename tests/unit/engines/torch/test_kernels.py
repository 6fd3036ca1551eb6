"""The compiled kernels against the torch kernels and against fp32: bf16 in, bf16 out, one rounding at the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.cpu_kernels import CpuKernels
from tandem.engines.torch.kv_cache import KvCache
from tandem.engines.torch.torch_kernels import TorchKernels

LAYERS, BLOCKS, MAX_LEN = 2, 60, 300
CONFIG = ModelConfig(
    family="llama",
    hidden_size=48,
    num_layers=LAYERS,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=40,
    vocab_size=32,
    context=MAX_LEN,
    rms_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    tied_embeddings=True,
)
SHAPES = [(6, 2, 16, 4), (9, 3, 64, 16), (4, 4, 80, 16), (8, 1, 128, 7)]
"""Heads, KV heads, head dimension, block size."""
ONE_ROUNDING = 2.0**-8
"""Most that one rounding to bf16 changes a number, relative to it."""


def make_kernels(shape: tuple[int, int, int, int]) -> tuple[CpuKernels, TorchKernels, KvCache, KvCache]:
    """Both sets, each with a cache of its own that holds the same random numbers."""
    heads, kv_heads, head_dim, block_size = shape
    config = replace(CONFIG, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    caches = [KvCache(config, block_size, BLOCKS, torch.bfloat16, torch.device("cpu")) for _ in range(2)]
    contents = torch.randn_like(caches[0]._memory)
    for cache in caches:
        cache._memory.copy_(contents)
    compiled = CpuKernels(config, caches[0], MAX_LEN)
    return compiled, TorchKernels(config, caches[1], MAX_LEN, torch.bfloat16), *caches


def wide_range(*shape: int) -> Tensor:
    """bf16 numbers of very different size."""
    return (torch.randn(shape) * torch.exp2(torch.randint(-12, 7, shape).float())).bfloat16()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", [1, 7])
def test_norm(rows: int) -> None:
    weight = torch.rand(48)
    norm = make_kernels(SHAPES[0])[0].norm(weight, 1e-5)
    x = wide_range(rows, 48)
    expected = torch.nn.functional.rms_norm(x.float(), (48,), weight, 1e-5)
    assert torch.allclose(norm(x).float(), expected, rtol=ONE_ROUNDING, atol=0)
    assert torch.count_nonzero(norm(torch.zeros_like(x))) == 0


def test_norm_of_heads_that_take_turns() -> None:
    """Rows of a slice that is not contiguous, with a weight for each of the three."""
    compiled, plain, *_ = make_kernels(SHAPES[0])
    weight, groups = torch.rand(4, 16), wide_range(5, 2, 5, 16)
    expected = plain.norm(weight, 1e-5)(groups[:, :, :-1].float())
    assert torch.allclose(compiled.norm(weight, 1e-5)(groups[:, :, :-1]).float(), expected, rtol=ONE_ROUNDING, atol=0)


def test_gate() -> None:
    """Far out too: silu goes to 0 on the left and to x on the right."""
    gate_up = torch.cat([wide_range(3, 40), torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 1e30]).repeat(3, 1)], 1)
    gate_up = torch.cat([gate_up, wide_range(3, 46)], 1).bfloat16()
    expected = torch.nn.functional.silu(gate_up[:, :46].float()) * gate_up[:, 46:].float()
    got = make_kernels(SHAPES[0])[0].gate(gate_up).float()
    assert torch.allclose(got, expected, rtol=ONE_ROUNDING, atol=1e-30)


def test_rounding_is_to_nearest_even() -> None:
    """All fp32 products of bf16 numbers near a tie come out as torch rounds them."""
    compiled, *_ = make_kernels(SHAPES[0])
    up = torch.arange(0x3F80, 0x4080, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    gate = torch.full_like(up, 100.0)  # silu(100) is 100, and multiplying by 100 makes ties
    got = compiled.gate(torch.cat([gate, up])[None])[0]
    assert torch.equal(got, (up.float() * 100.0).bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
def test_store(shape: tuple[int, int, int, int]) -> None:
    compiled, plain, cache, plain_cache = make_kernels(shape)
    heads, kv_heads, head_dim, _ = shape
    positions, blocks = np.array([0, 5, 17, 299, 3]), np.array([7, 8, 2, 59, 0])
    groups = torch.randn(5, kv_heads, heads // kv_heads + 2, head_dim).bfloat16()
    for layer in range(LAYERS):
        expected = plain.store(positions, blocks)(layer, groups.clone()).float()
        got = compiled.store(positions, blocks)(layer, groups.clone()).float()
        assert torch.allclose(got, expected, rtol=ONE_ROUNDING, atol=1e-6)
    assert torch.allclose(cache._memory.float(), plain_cache._memory.float(), rtol=ONE_ROUNDING, atol=1e-6)
    changed = cache._memory != plain_cache._memory
    assert changed.float().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [[1], [40], [33, 20, 20, 8, 7, 1]])
def test_decode_attention(shape: tuple[int, int, int, int], lengths: list[int]) -> None:
    """Ragged lengths in scattered blocks, against plain fp32 attention on the same cache."""
    compiled, _, cache, _ = make_kernels(shape)
    heads, kv_heads, head_dim, size = shape
    rng = np.random.default_rng(len(lengths))
    counts = [-(-n // size) for n in lengths]
    tables = np.zeros((len(lengths), max(counts)), np.int64)
    for table, count in zip(tables, counts, strict=True):
        table[:count] = rng.permutation(BLOCKS)[:count]
    groups = (torch.randn(len(lengths), kv_heads, heads // kv_heads + 2, head_dim) / head_dim**0.5).bfloat16()
    for layer in range(LAYERS):
        got = compiled.decode_attention(tables, np.array(lengths))(layer, groups).float()
        for row, table, count, n in zip(range(len(lengths)), tables, counts, lengths, strict=True):
            pieces = np.ascontiguousarray(cache.piece_index(table[:count]).transpose(1, 2, 0))
            keys, values = (t[:, :n].float() for t in cache.read(layer, torch.tensor(pieces)))
            queries = groups[row, :, :-2].float()
            weights = torch.softmax(queries @ keys.transpose(1, 2), -1)
            expected = (weights @ values).flatten()
            assert torch.allclose(got[row], expected, rtol=ONE_ROUNDING, atol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [250, 40, 33, 20, 20, 8, 7, 1]])
def test_decode_attention_of_torch(lengths: list[int]) -> None:
    """The same by both sets; so long a tail of short sequences is cut into groups."""
    compiled, plain, *_ = make_kernels(SHAPES[0])
    counts = [-(-n // 4) for n in lengths]
    tables = np.zeros((len(lengths), max(counts)), np.int64)
    for i, (table, count) in enumerate(zip(tables, counts, strict=True)):
        table[:count] = (np.arange(count) * 7 + i) % BLOCKS
    groups = (torch.randn(len(lengths), 2, 5, 16) / 4).bfloat16()
    ours = compiled.decode_attention(tables, np.array(lengths))(1, groups).float()
    theirs = plain.decode_attention(tables, np.array(lengths))(1, groups).float()
    assert torch.allclose(ours, theirs, rtol=0, atol=0.02)
