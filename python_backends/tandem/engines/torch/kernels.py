"""What a layer does between its matrix products. Two sets: torch for every device and dtype, compiled loops for bf16 on
CPU. Both compute the same functions; the model does not know which it has."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import Integers, KvCache


class Norm(Protocol):
    """Root-mean-square normalisation (https://arxiv.org/abs/1910.07467): x / sqrt(mean(x²) + eps) · weight."""

    def __call__(self, x: Tensor) -> Tensor:
        """Over the last dimension of ``x`` [..., size]; computed in fp32, returned in the dtype of ``x``."""
        ...


class Store(Protocol):
    """Position and storage of one step's tokens."""

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """Rotate queries and keys by position, divide queries by sqrt(head_dim), put keys and values in the cache.

        Args:
            layer: its index.
            groups: [tokens, kv_heads, group_size + 2, head_dim]: of each KV head its queries, its key, its value.

        Returns:
            The groups so changed; ``groups`` itself may have been changed too.
        """
        ...


class Attention(Protocol):
    """Attention of one step, after ``Store``."""

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """Of what ``Store`` returned, to [tokens, heads * head_dim]."""
        ...


class Kernels(Protocol):
    """One set, for one model and cache."""

    def norm(self, weight: Tensor, eps: float) -> Norm:
        """``weight``: [size], or [rows, size] for rows that take turns."""
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) · up: [tokens, 2 * size] to [tokens, size]."""
        ...

    def store(self, positions: Integers, block_ids: Integers) -> Store:
        """For tokens at ``positions`` of their sequences, in the cache's blocks ``block_ids`` [tokens]."""
        ...

    def decode_attention(self, tables: Integers, lengths: Integers) -> Attention:
        """For one token per sequence.

        Args:
            tables: block ids [sequences, most blocks], padded with any valid id.
            lengths: tokens of each sequence, the new one included, in descending order.
        """
        ...


def choose_kernels(config: ModelConfig, cache: KvCache, max_len: int, dtype: torch.dtype) -> Kernels:
    """The quicker set that can do it. ``max_len``: positions go from 0 to max_len - 1."""
    if dtype == torch.bfloat16 and cache.device.type == "cpu":
        from tandem.engines.torch.cpu_kernels import CpuKernels  # imports numba, and may compile

        return CpuKernels(config, cache, max_len)
    from tandem.engines.torch.torch_kernels import TorchKernels

    return TorchKernels(config, cache, max_len, dtype)
