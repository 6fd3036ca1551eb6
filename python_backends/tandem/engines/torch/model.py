"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3 (dense), SmolLM2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tandem.engines.torch.batch import Batch
from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kv_cache import KvCache
from tandem.engines.torch.rotary import group_factors, rotate, rotation_table
from tandem.engines.torch.weights import LayerWeights, ModelWeights


class LlamaModel:
    """Reads a batch of tokens, writes their KV into the cache, returns logits."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, cache: KvCache, max_len: int) -> None:
        """``max_len``: positions from 0 to max_len - 1 will occur."""
        self._config, self._weights, self._cache = config, weights, cache
        self._rotations = rotation_table(config, max_len, cache.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits [sequences, vocab_size] of the token after each sequence, in the engine's dtype."""
        x = functional.embedding(batch.token_ids, self._weights.embedding)
        factors = group_factors(self._rotations.index_select(0, batch.positions), self._config)
        last = len(self._weights.layers) - 1
        for i, layer in enumerate(self._weights.layers):
            x = self._attend(i, layer, x, factors, batch)
            if i == last and batch.last_rows is not None:
                x = x.index_select(0, batch.last_rows)  # nothing after this looks at other rows
            x = self._feed_forward(layer, x)
        return self._weights.head(self._weights.final_norm(x))

    def _attend(self, i: int, layer: LayerWeights, x: Tensor, factors: Tensor, batch: Batch) -> Tensor:
        """The attention half of a block, residual included. ``x``: [tokens, hidden]."""
        c = self._config
        groups = layer.qkv(layer.attention_norm(x)).view(-1, c.num_kv_heads, c.group_size + 2, c.head_dim)
        if layer.head_norm is not None:
            groups[:, :, :-1] = layer.head_norm(groups[:, :, :-1])
        groups = rotate(groups, factors)
        self._cache.write(i, batch.slots, groups[:, :, -2:])
        return layer.attention_out.plus(batch.attention(i, groups), x)

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """The feed-forward half of a block, residual included. ``x``: [tokens, hidden]."""
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
        return layer.down.plus(functional.silu(gate).mul_(up), x)
