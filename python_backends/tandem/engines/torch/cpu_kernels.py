"""The kernels for bf16 on CPU: compiled loops over the tensors' memory, with nothing copied."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.engines.torch import compiled
from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import Integers, KvCache
from tandem.engines.torch.rotary import rotation_table

Bits = npt.NDArray[np.uint16]


class CpuKernels:
    """``Kernels`` in compiled loops."""

    def __init__(self, config: ModelConfig, cache: KvCache, max_len: int) -> None:
        """The first time on a machine this compiles for some seconds; numba keeps the result on disk."""
        self._cache = cache
        self._rotations = torch.view_as_real(rotation_table(config, max_len)).numpy()
        self._scale = np.float32(1.0 / math.sqrt(config.head_dim))
        self._slots = [_bits(cache.slots(layer)) for layer in range(config.num_layers)]
        self._pieces = [_bits(cache.pieces(layer)) for layer in range(config.num_layers)]
        self._attend = compiled.make_decode_attention(config.group_size, config.head_dim, cache.block_size)

    def norm(self, weight: Tensor, eps: float) -> CpuNorm:
        """As in ``Kernels``."""
        return CpuNorm(weight, eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        """As in ``Kernels``."""
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        compiled.gate(_bits(gate_up), _bits(out))
        return out

    def store(self, positions: Integers, block_ids: Integers) -> CpuStore:
        """As in ``Kernels``."""
        index = self._cache.slot_index(block_ids, positions % self._cache.block_size)
        return CpuStore(self._rotations[positions], self._scale, self._slots, np.ascontiguousarray(index))

    def decode_attention(self, tables: Integers, lengths: Integers) -> CpuDecodeAttention:
        """As in ``Kernels``."""
        pieces = self._cache.piece_index(tables).transpose(0, 3, 2, 1)  # [sequences, kv_heads, 2, blocks]
        used = np.arange(tables.shape[1]) * self._cache.block_size < lengths[:, None, None, None]
        return CpuDecodeAttention(self._attend, self._pieces, pieces[np.broadcast_to(used, pieces.shape)], lengths)


class CpuNorm:
    """``Norm``."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight.float().reshape(-1, weight.shape[-1]).numpy()
        self._eps = np.float32(eps)

    def __call__(self, x: Tensor) -> Tensor:
        """As in ``Norm``."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        compiled.rms_norm(_bits(rows), self._weight, self._eps, _bits(out))
        return out.view(x.shape)


class CpuStore:
    """``Store``, in place."""

    def __init__(
        self, rotations: npt.NDArray[np.float32], scale: np.float32, slots: list[Bits], index: Integers
    ) -> None:
        self._rotations, self._scale, self._slots, self._index = rotations, scale, slots, index

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """As in ``Store``."""
        compiled.turn_and_store(_bits(groups), self._rotations, self._scale, self._slots[layer], self._index)
        return groups


class CpuDecodeAttention:
    """``Attention`` over the cache where it lies."""

    def __init__(
        self, attend: compiled.DecodeAttention, pieces: list[Bits], index: Integers, lengths: Integers
    ) -> None:
        self._attend, self._pieces, self._index, self._lengths = attend, pieces, index, lengths

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """As in ``Attention``."""
        sequences, kv_heads, members, head_dim = groups.shape
        out = groups.new_empty(sequences, kv_heads * (members - 2), head_dim)
        self._attend(_bits(groups), self._pieces[layer], self._index, self._lengths, _bits(out))
        return out.view(sequences, -1)


def _bits(tensor: Tensor) -> Bits:
    """The same memory as numpy knows it."""
    bits: Bits = tensor.view(torch.uint16).numpy()
    return bits
