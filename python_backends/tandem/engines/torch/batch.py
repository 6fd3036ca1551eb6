"""One step's sequences as the tensors that the forward pass takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.engines.torch.attention import Attention, DecodeAttention, Group, PrefillAttention, Span
from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import KvCache
from tandem.engines.torch.sequence import Sequence

Integers = npt.NDArray[np.int64]

GROUP_WASTE = 32
"""Blocks of padding that one group of a decode step may have: about what one more group costs."""


@dataclass(frozen=True)
class Batch:
    """Tokens of several sequences, one after another."""

    sequences: list[Sequence]
    """In the order of their rows; logits come in this order too."""
    token_ids: Tensor
    """int64 [tokens]."""
    positions: Tensor
    """int64 [tokens], each from 0 in its sequence."""
    slots: Tensor
    """Where their keys and values go."""
    last_rows: Tensor | None
    """int64 [sequences]: the rows whose logits are wanted; None for all."""
    attention: Attention


class BatchBuilder:
    """Turns sequences into batches for one model and cache."""

    def __init__(self, config: ModelConfig, cache: KvCache, dtype: torch.dtype) -> None:
        self._config, self._cache, self._dtype = config, cache, dtype

    def prefill(self, sequences: list[Sequence]) -> Batch:
        """All tokens of ``sequences`` that are not in the cache yet."""
        lengths = [s.num_uncached for s in sequences]
        ends = list(accumulate(lengths))
        spans = [
            Span(end - length, end, s.num_cached, self._pieces(self._table([s])) if s.num_cached else self._nothing())
            for s, length, end in zip(sequences, lengths, ends, strict=True)
        ]
        positions = [np.arange(s.num_cached, len(s.token_ids)) for s in sequences]
        blocks = [
            np.asarray(s.block_ids)[p // self._cache.block_size] for s, p in zip(sequences, positions, strict=True)
        ]
        token_ids = [t for s in sequences for t in s.token_ids[s.num_cached :]]
        return self._batch(
            sequences,
            np.asarray(token_ids),
            np.concatenate(positions),
            np.concatenate(blocks),
            torch.tensor(ends, device=self._cache.device) - 1,
            PrefillAttention(self._cache, spans, self._dtype),
        )

    def decode(self, sequences: list[Sequence]) -> Batch:
        """The last token of each of ``sequences``; they are put in order of length."""
        ordered = sorted(sequences, key=lambda s: -len(s.token_ids))
        size = self._cache.block_size
        lengths = np.asarray([len(s.token_ids) for s in ordered])
        table = self._table(ordered)
        last_blocks = table[np.arange(len(ordered)), (lengths - 1) // size]
        groups = [self._group(first, end, lengths, table) for first, end in _group_bounds(-(-lengths // size))]
        return self._batch(
            ordered,
            np.asarray([s.token_ids[-1] for s in ordered]),
            lengths - 1,
            last_blocks,
            None,
            DecodeAttention(self._cache, groups),
        )

    def _batch(
        self,
        sequences: list[Sequence],
        token_ids: Integers,
        positions: Integers,
        block_ids: Integers,
        last_rows: Tensor | None,
        attention: Attention,
    ) -> Batch:
        where = self._tensor(positions)
        slots = self._cache.slot_index(self._tensor(block_ids), where % self._cache.block_size)
        return Batch(sequences, self._tensor(token_ids), where, slots, last_rows, attention)

    def _table(self, sequences: list[Sequence]) -> Integers:
        """Block tables as rows, up to the longest sequence's end, padded with block 0."""
        size = self._cache.block_size
        counts = [-(-len(s.token_ids) // size) for s in sequences]
        table = np.zeros((len(sequences), max(counts)), dtype=np.int64)
        for row, s, count in zip(table, sequences, counts, strict=True):
            row[:count] = s.block_ids[:count]
        return table

    def _group(self, first: int, end: int, lengths: Integers, table: Integers) -> Group:
        blocks = -(-int(lengths[first]) // self._cache.block_size)
        tokens = blocks * self._cache.block_size
        mask = np.where(np.arange(tokens) < lengths[first:end, None], 0.0, -math.inf)
        mask = mask.repeat(self._config.num_kv_heads, axis=0)[:, None, :]
        pieces = self._pieces(table[first:end, :blocks])
        return Group(first, end, pieces, self._tensor(mask).to(self._dtype))

    def _pieces(self, table: Integers) -> Tensor:
        return self._cache.piece_index(self._tensor(table))

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=torch.int64, device=self._cache.device)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._cache.device)


def _group_bounds(blocks: Integers) -> list[tuple[int, int]]:
    """Cut sequences, given by their block counts in descending order, into runs with little padding."""
    bounds, first, waste = [], 0, 0
    for i, count in enumerate(blocks.tolist()):
        waste += int(blocks[first]) - count
        if waste > GROUP_WASTE:
            bounds.append((first, i))
            first, waste = i, 0
    return [*bounds, (first, len(blocks))]
