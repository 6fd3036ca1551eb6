"""Attention over the paged cache, as few large batched products: on CPU, in bf16, 2 to 4 times as quick as torch's
fused attention, whose CPU kernel calls one small product per head. All query heads that share a KV head are rows of
one product, so keys and values are never repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import KvCache

CHUNK = 64
"""Query tokens per product in prefill: of the upper triangle only CHUNK/2 columns are computed in vain."""


class Attention(Protocol):
    """Attention of one step; the step's keys and values are in the cache already."""

    def __call__(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """One layer.

        Args:
            layer: its index.
            queries: [tokens, heads, head_dim], rotated.
            keys_values: [tokens, 2 * kv_heads, head_dim] of the same tokens.

        Returns:
            [tokens, heads * head_dim].
        """
        ...


@dataclass(frozen=True)
class Span:
    """One sequence's tokens in a prefill step: rows ``first`` to ``end``, standing after ``cached`` earlier tokens."""

    first: int
    end: int
    cached: int
    pieces: Tensor
    """Pieces of all its blocks, for when there are earlier tokens."""


class PrefillAttention:
    """Each sequence by itself, CHUNK query tokens at a time against all keys up to them."""

    def __init__(self, config: ModelConfig, cache: KvCache, spans: list[Span], dtype: torch.dtype) -> None:
        self._cache, self._spans = cache, spans
        self._kv_heads, self._group, self._head_dim = config.num_kv_heads, config.group_size, config.head_dim
        self._scale = 1.0 / math.sqrt(config.head_dim)
        device = cache.device
        self._causal = torch.full((CHUNK, CHUNK), -math.inf, dtype=dtype, device=device).triu(1)

    def __call__(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """As in ``Attention``."""
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        for span in self._spans:
            rows = slice(span.first, span.end)
            keys, values = self._keys_values(layer, span, keys_values[rows])
            self._attend(queries[rows], keys, values, span.cached, out[rows])
        return out.flatten(1)

    def _keys_values(self, layer: int, span: Span, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of one sequence, each [kv_heads, tokens, head_dim]."""
        if span.cached:
            keys, values = self._cache.read(layer, span.pieces, 1)
            tokens = span.cached + span.end - span.first
            return keys[:, :tokens], values[:, :tokens]
        both = fresh.transpose(0, 1).contiguous()
        return both[: self._kv_heads], both[self._kv_heads :]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, cached: int, out: Tensor) -> None:
        """``queries`` and ``out``: [tokens, heads, head_dim]."""
        shape = (queries.shape[0], self._kv_heads, self._group, self._head_dim)
        queries = queries.view(shape).permute(1, 2, 0, 3)
        out = out.view(shape).permute(1, 2, 0, 3)
        for first in range(0, shape[0], CHUNK):
            chunk = (queries[:, :, first : first + CHUNK] * self._scale).contiguous()
            rows = chunk.shape[2]
            end = cached + first + rows
            scores = torch.bmm(chunk.flatten(1, 2), keys[:, :end].transpose(1, 2))
            scores.view(self._kv_heads, self._group, rows, end)[..., end - rows :].add_(self._causal[:rows, :rows])
            result = torch.bmm(torch.softmax(scores, -1), values[:, :end])
            out[:, :, first : first + rows] = result.view(chunk.shape)


@dataclass(frozen=True)
class Group:
    """Sequences of similar length in a decode step: rows ``first`` to ``end`` of it."""

    first: int
    end: int
    pieces: Tensor
    mask: Tensor
    """0 for a token of the sequence, -inf behind its end: [sequences * kv_heads, 1, blocks * block_size]."""


class DecodeAttention:
    """One query token per sequence, groups of similarly long sequences at a time."""

    def __init__(self, config: ModelConfig, cache: KvCache, groups: list[Group]) -> None:
        self._cache, self._groups = cache, groups
        self._shape = (-1, config.group_size, config.head_dim)
        self._scale = 1.0 / math.sqrt(config.head_dim)

    def __call__(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:  # noqa: ARG002 - all in the cache
        """As in ``Attention``."""
        parts = [self._attend(layer, group, queries[group.first : group.end]) for group in self._groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, layer: int, group: Group, queries: Tensor) -> Tensor:
        sequences = queries.shape[0]
        keys, values = self._cache.read(layer, group.pieces, sequences)
        scores = torch.bmm(queries.reshape(self._shape), keys.transpose(1, 2))
        scores = torch.add(group.mask, scores, alpha=self._scale)
        return torch.bmm(torch.softmax(scores, -1), values).view(sequences, -1)
