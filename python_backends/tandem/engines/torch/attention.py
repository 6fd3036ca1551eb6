"""Attention of prefill steps, as few large batched products: on CPU, in bf16, twice as quick as torch's fused
attention, whose CPU kernel calls one small product per head. All query heads that share a KV head are rows of one
product, so keys and values are never repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.engines.torch.kv_cache import KvCache

CHUNK = {"cpu": 64, "cuda": 1024}
"""Query tokens per product in prefill. Half a chunk's own keys are computed in vain; a GPU prefers fewer launches."""


@dataclass(frozen=True)
class Span:
    """One sequence's tokens in a prefill step: rows ``first`` to ``end``, standing after ``cached`` earlier tokens."""

    first: int
    end: int
    cached: int
    pieces: Tensor
    """Those of all its blocks, as ``KvCache.read`` takes them; used where there are earlier tokens."""


class PrefillAttention:
    """Each sequence by itself, CHUNK query tokens at a time against all keys up to them."""

    def __init__(self, cache: KvCache, spans: list[Span], dtype: torch.dtype) -> None:
        self._cache, self._spans = cache, spans
        self._chunk = chunk = CHUNK[cache.device.type]
        self._causal = torch.full((chunk, chunk), -math.inf, dtype=dtype, device=cache.device).triu(1)

    def __call__(self, layer: int, groups: Tensor) -> Tensor:
        """As in ``Attention``."""
        queries = groups[:, :, :-2]
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        for span in self._spans:
            rows = slice(span.first, span.end)
            keys, values = self._keys_values(layer, span, groups[rows, :, -2:])
            self._attend(queries[rows], keys, values, span.cached, out[rows])
        return out.flatten(1)

    def _keys_values(self, layer: int, span: Span, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of one sequence, each [kv_heads, tokens, head_dim]."""
        if span.cached:
            keys, values = self._cache.read(layer, span.pieces)
            tokens = span.cached + span.end - span.first
            return keys[:, :tokens], values[:, :tokens]
        keys, values = fresh.permute(2, 1, 0, 3).contiguous().unbind()
        return keys, values

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, cached: int, out: Tensor) -> None:
        """``queries`` and ``out``: [tokens, kv_heads, group_size, head_dim]."""
        queries, out = queries.permute(1, 2, 0, 3), out.permute(1, 2, 0, 3)
        heads, group, tokens, _ = queries.shape
        for first in range(0, tokens, self._chunk):
            chunk = queries[:, :, first : first + self._chunk].contiguous()
            rows = chunk.shape[2]
            end = cached + first + rows
            scores = torch.bmm(chunk.flatten(1, 2), keys[:, :end].transpose(1, 2))
            scores.view(heads, group, rows, end)[..., end - rows :].add_(self._causal[:rows, :rows])
            result = torch.bmm(torch.softmax(scores, -1), values[:, :end])
            out[:, :, first : first + rows] = result.view(chunk.shape)
