"""One step's sequences as the tensors that the forward pass takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from tandem.engines.torch.attention import PrefillAttention, Span
from tandem.engines.torch.kernels import Attention, Kernels, Store
from tandem.engines.torch.kv_cache import Integers, KvCache
from tandem.engines.torch.sequence import Sequence


@dataclass(frozen=True)
class Batch:
    """Tokens of several sequences, one after another."""

    sequences: list[Sequence]
    """In the order of their rows; logits come in this order too."""
    token_ids: Tensor
    """int64 [tokens]."""
    last_rows: Tensor | None
    """int64 [sequences]: the rows whose logits are wanted; None for all."""
    store: Store
    attention: Attention


class BatchBuilder:
    """Turns sequences into batches for one model and cache."""

    def __init__(self, cache: KvCache, kernels: Kernels, dtype: torch.dtype) -> None:
        self._cache, self._kernels, self._dtype = cache, kernels, dtype

    def prefill(self, sequences: list[Sequence]) -> Batch:
        """All tokens of ``sequences`` that are not in the cache yet."""
        size = self._cache.block_size
        lengths = [s.num_uncached for s in sequences]
        ends = list(accumulate(lengths))
        positions = [np.arange(s.num_cached, len(s.token_ids)) for s in sequences]
        blocks = [np.asarray(s.block_ids)[p // size] for s, p in zip(sequences, positions, strict=True)]
        spans = [
            Span(end - length, end, s.num_cached, self._pieces(s))
            for s, length, end in zip(sequences, lengths, ends, strict=True)
        ]
        return Batch(
            sequences,
            self._tensor([t for s in sequences for t in s.token_ids[s.num_cached :]]),
            self._tensor(ends) - 1,
            self._kernels.store(np.concatenate(positions), np.concatenate(blocks)),
            PrefillAttention(self._cache, spans, self._dtype),
        )

    def decode(self, sequences: list[Sequence]) -> Batch:
        """The last token of each of ``sequences``; they are put in order of length."""
        ordered = sorted(sequences, key=lambda s: -len(s.token_ids))
        lengths = np.asarray([len(s.token_ids) for s in ordered])
        tables = self._tables(ordered)
        last_blocks = tables[np.arange(len(ordered)), (lengths - 1) // self._cache.block_size]
        return Batch(
            ordered,
            self._tensor([s.token_ids[-1] for s in ordered]),
            None,
            self._kernels.store(lengths - 1, last_blocks),
            self._kernels.decode_attention(tables, lengths),
        )

    def _tables(self, sequences: list[Sequence]) -> Integers:
        """Block tables as rows, up to the longest sequence's end, padded with block 0."""
        counts = [-(-len(s.token_ids) // self._cache.block_size) for s in sequences]
        tables = np.zeros((len(sequences), max(counts)), dtype=np.int64)
        for row, s, count in zip(tables, sequences, counts, strict=True):
            row[:count] = s.block_ids[:count]
        return tables

    def _pieces(self, sequence: Sequence) -> Tensor:
        pieces = self._cache.piece_index(self._tables([sequence])[0])  # [blocks, 2, kv_heads]
        return self._tensor(pieces.transpose(1, 2, 0))

    def _tensor(self, values: list[int] | Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self._cache.device)
