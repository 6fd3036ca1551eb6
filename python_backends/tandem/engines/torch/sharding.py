"""One rank's part of a model: which layers are its own, and which rows or columns of their weights.

Column-parallel (rows of a weight): queries, keys, values, gate, up, embedding, head. Row-parallel (columns of a weight,
products summed over the ranks): attention output, down. After Megatron-LM (https://arxiv.org/abs/1909.08053).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tandem.engines.torch.config import ModelConfig
from tandem.messages import Partition
from tandem.parallel.partition import (
    check_partition,
    kv_heads_of,
    layers_of,
    pipeline_rank,
    tensor_rank,
    vocab_of,
)

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)?\.?(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Cut:
    """Indexes ``first`` to ``end`` along ``axis`` of a tensor."""

    axis: int
    first: int
    end: int

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is cut out of a tensor of shape ``whole``."""
        return (*whole[: self.axis], self.end - self.first, *whole[self.axis + 1 :])

    def take(self, whole: Any) -> Any:
        """What is cut out of ``whole``: a tensor, an array, or a slice of a safetensors file that is not read yet."""
        return whole[self.first : self.end] if self.axis == 0 else whole[:, self.first : self.end]


class Shard:
    """One rank's part. Tensors have the names of Hugging Face checkpoints."""

    def __init__(self, whole: ModelConfig, partition: Partition, rank: int) -> None:
        """
        Raises:
            TandemError: ``invalid_request``: the model cannot be split like this.
        """
        check_partition(
            partition,
            num_layers=whole.num_layers,
            num_heads=whole.num_heads,
            num_kv_heads=whole.num_kv_heads,
            intermediate_size=whole.intermediate_size,
        )
        self.whole, self.partition, self.rank = whole, partition, rank
        self.place, self.stage = tensor_rank(partition, rank), pipeline_rank(partition, rank)
        """Within the pipeline stage, and of the pipeline stage."""
        self.layers = layers_of(partition, rank, whole.num_layers)
        self.vocab = vocab_of(partition, rank, whole.vocab_size)
        self.kv_heads = kv_heads_of(partition, rank, whole.num_kv_heads)
        self.config = replace(
            whole,
            num_layers=len(self.layers),
            num_heads=whole.num_heads // partition.tensor_parallel_size,
            num_kv_heads=len(self.kv_heads),
            intermediate_size=whole.intermediate_size // partition.tensor_parallel_size,
        )
        """As if this part were a model of its own, vocabulary apart."""

    @property
    def is_whole(self) -> bool:
        """Whether there is no other rank."""
        return self.partition.size == 1

    @property
    def is_first_stage(self) -> bool:
        """Whether tokens enter here."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether logits come out here."""
        return self.stage == self.partition.pipeline_parallel_size - 1

    def holds(self, name: str) -> bool:
        """Whether this rank needs anything of the tensor ``name``."""
        if name == EMBEDDING:
            return self.is_first_stage or (self.is_last_stage and self.whole.tied_embeddings)
        if name in (HEAD, FINAL_NORM):
            return self.is_last_stage
        found = _LAYER.fullmatch(name)
        if found is None or int(found[1]) not in self.layers:
            return False
        is_added_once = found[2] in ("o_proj", "down_proj") and found[3] == "bias"
        return self.place == 0 or not is_added_once

    def cut(self, name: str) -> Cut | None:
        """What this rank needs of the tensor ``name``, one that it holds; None: all of it."""
        if name in (EMBEDDING, HEAD):
            return Cut(0, self.vocab.start, self.vocab.stop)
        found = _LAYER.fullmatch(name)
        if found is None or self.partition.tensor_parallel_size == 1:
            return None
        projection, kind = found[2], found[3]
        if projection in ("k_proj", "v_proj"):
            head_dim = self.whole.head_dim
            return Cut(0, self.kv_heads.start * head_dim, self.kv_heads.stop * head_dim)
        queries, hidden = self.config.num_heads * self.whole.head_dim, self.config.intermediate_size
        share = {"q_proj": queries, "o_proj": queries, "gate_proj": hidden, "up_proj": hidden, "down_proj": hidden}
        if projection not in share:
            return None
        is_row_parallel = projection in ("o_proj", "down_proj")
        if is_row_parallel and kind == "bias":
            return None
        size = share[projection]
        return Cut(int(is_row_parallel), self.place * size, (self.place + 1) * size)
