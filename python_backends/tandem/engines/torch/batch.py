"""One step's rows as the tensors that the forward pass takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from tandem.engines.torch.attention import PrefillAttention, Span
from tandem.engines.torch.kernels import Attention, Kernels, Store
from tandem.engines.torch.kv_cache import Integers, KvCache
from tandem.messages import Row, StepPlan


@dataclass(frozen=True)
class Batch:
    """Tokens of several sequences, one after another, in the order of the plan's rows; so are the logits."""

    token_ids: Tensor
    """int64 [tokens]."""
    last_rows: Tensor | None
    """int64 [sequences]: the tokens whose logits are wanted; None for all."""
    store: Store
    attention: Attention


class BatchBuilder:
    """Turns plans into batches for one model and cache."""

    def __init__(self, cache: KvCache, kernels: Kernels, dtype: torch.dtype) -> None:
        self._cache, self._kernels, self._dtype = cache, kernels, dtype

    def build(self, plan: StepPlan) -> Batch:
        """The batch of one step."""
        return self._prefill(plan.rows) if plan.is_prefill else self._decode(plan.rows)

    def _prefill(self, rows: list[Row]) -> Batch:
        size = self._cache.block_size
        lengths = [len(row.token_ids) for row in rows]
        ends = list(accumulate(lengths))
        positions = [np.arange(row.num_cached, row.num_cached + n) for row, n in zip(rows, lengths, strict=True)]
        blocks = [np.asarray(row.block_ids)[p // size] for row, p in zip(rows, positions, strict=True)]
        spans = [
            Span(end - length, end, row.num_cached, self._pieces(row))
            for row, length, end in zip(rows, lengths, ends, strict=True)
        ]
        return Batch(
            self._tensor([t for row in rows for t in row.token_ids]),
            self._tensor(ends) - 1,
            self._kernels.store(np.concatenate(positions), np.concatenate(blocks)),
            PrefillAttention(self._cache, spans, self._dtype),
        )

    def _decode(self, rows: list[Row]) -> Batch:
        """One token a row; longer sequences first."""
        lengths = np.asarray([row.num_cached + 1 for row in rows])
        tables = self._tables(rows)
        last_blocks = tables[np.arange(len(rows)), (lengths - 1) // self._cache.block_size]
        return Batch(
            self._tensor([row.token_ids[0] for row in rows]),
            None,
            self._kernels.store(lengths - 1, last_blocks),
            self._kernels.decode_attention(tables, lengths),
        )

    def _tables(self, rows: list[Row]) -> Integers:
        """Block tables, up to the longest sequence's end, padded with block 0."""
        tables = np.zeros((len(rows), max(len(row.block_ids) for row in rows)), dtype=np.int64)
        for table, row in zip(tables, rows, strict=True):
            table[: len(row.block_ids)] = row.block_ids
        return tables

    def _pieces(self, row: Row) -> Tensor:
        pieces = self._cache.piece_index(self._tables([row])[0])  # [blocks, 2, kv_heads]
        return self._tensor(pieces.transpose(1, 2, 0))

    def _tensor(self, values: list[int] | Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self._cache.device)
