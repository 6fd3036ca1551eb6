"""The kernels as torch operations: any device, any dtype, fp32 exact. On CPU every operation costs microseconds to
start, so each function takes as few as it can."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import Integers, KvCache
from tandem.engines.torch.rotary import rotation_table

GROUP_WASTE = 32
"""Blocks of padding that one group of a decode step may have: about what one more group costs."""


class TorchKernels:
    """``Kernels`` in torch."""

    def __init__(self, config: ModelConfig, cache: KvCache, max_len: int, dtype: torch.dtype) -> None:
        self._config, self._cache, self._dtype = config, cache, dtype
        self._rotations = rotation_table(config, max_len).to(cache.device)

    def norm(self, weight: Tensor, eps: float) -> TorchNorm:
        """As in ``Kernels``."""
        return TorchNorm(weight, eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        """As in ``Kernels``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def store(self, positions: Integers, block_ids: Integers) -> TorchStore:
        """As in ``Kernels``."""
        slots = self._cache.slot_index(block_ids, positions % self._cache.block_size)
        rotations = self._rotations.index_select(0, self._tensor(positions))
        return TorchStore(self._cache, self._tensor(slots), _group_factors(rotations, self._config))

    def decode_attention(self, tables: Integers, lengths: Integers) -> TorchDecodeAttention:
        """As in ``Kernels``."""
        blocks = -(-lengths // self._cache.block_size)
        groups = [self._group(tables, lengths, first, end) for first, end in _group_bounds(blocks.tolist())]
        return TorchDecodeAttention(self._cache, groups)

    def _group(self, tables: Integers, lengths: Integers, first: int, end: int) -> Group:
        blocks = -(-int(lengths[first]) // self._cache.block_size)
        beyond = np.arange(blocks * self._cache.block_size) >= lengths[first:end, None]
        mask = np.where(beyond, -math.inf, 0.0).repeat(self._config.num_kv_heads, axis=0)[:, None, :]
        pieces = self._cache.piece_index(tables[first:end, :blocks]).transpose(2, 0, 3, 1)
        return Group(first, end, self._tensor(pieces.reshape(2, -1, blocks)), self._tensor(mask).to(self._dtype))

    def _tensor(self, array: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._cache.device)


class TorchNorm:
    """With n = |x|, the norm is x · (weight·sqrt(size)) / hypot(n, sqrt(size·eps)): fewer operations than
    ``torch.rms_norm`` takes on CPU."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self._weight = weight.float() * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """As in ``Norm``."""
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32).hypot_(self._floor)
        return torch.mul(x, self._weight).div_(length).to(x.dtype)


class TorchStore:
    """One complex product for all heads: ``factors`` turn and scale queries, turn keys, and leave values."""

    def __init__(self, cache: KvCache, slots: Tensor, factors: Tensor) -> None:
        self._cache, self._slots, self._factors = cache, slots, factors

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """As in ``Store``."""
        pairs = groups.float().view(torch.complex64)
        groups = (pairs * self._factors).view(torch.float32).to(groups.dtype)
        self._cache.write(layer, self._slots, groups[:, :, -2:])
        return groups


def _group_factors(rotations: Tensor, config: ModelConfig) -> Tensor:
    """From [tokens, head_dim / 2] to complex64 [tokens, 1, group_size + 2, head_dim / 2]."""
    factors = rotations.unsqueeze(1).repeat(1, config.group_size + 2, 1)
    factors[:, :-2] /= math.sqrt(config.head_dim)
    factors[:, -1] = 1.0
    return factors.unsqueeze(1)


@dataclass(frozen=True)
class Group:
    """Sequences of similar length in a decode step: rows ``first`` to ``end`` of it."""

    first: int
    end: int
    pieces: Tensor
    mask: Tensor
    """0 for a token of the sequence, -inf behind its end: [sequences * kv_heads, 1, blocks * block_size]."""


class TorchDecodeAttention:
    """One query token per sequence, groups of similarly long sequences at a time."""

    def __init__(self, cache: KvCache, groups: list[Group]) -> None:
        self._cache, self._groups = cache, groups

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """As in ``Attention``."""
        queries = groups.flatten(0, 1)[:, :-2]  # [sequences * kv_heads, group_size, head_dim]
        if len(self._groups) == 1:
            out = self._attend(layer, self._groups[0], queries)
        else:
            heads = groups.shape[1]
            parts = [queries[g.first * heads : g.end * heads] for g in self._groups]
            out = torch.cat([self._attend(layer, g, part) for g, part in zip(self._groups, parts, strict=True)])
        return out.view(groups.shape[0], -1)

    def _attend(self, layer: int, group: Group, queries: Tensor) -> Tensor:
        keys, values = self._cache.read(layer, group.pieces)
        scores = torch.bmm(queries, keys.transpose(1, 2)).add_(group.mask)
        return torch.bmm(torch.softmax(scores, -1), values)


def _group_bounds(blocks: list[int]) -> list[tuple[int, int]]:
    """Cut sequences, given by their block counts in descending order, into runs with little padding."""
    bounds, first, waste = [], 0, 0
    for i, count in enumerate(blocks):
        waste += blocks[first] - count
        if waste > GROUP_WASTE:
            bounds.append((first, i))
            first, waste = i, 0
    return [*bounds, (first, len(blocks))]
