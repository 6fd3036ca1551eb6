"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3 (dense), SmolLM2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tandem.engines.torch.batch import Batch
from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.kernels import Kernels
from tandem.engines.torch.weights import LayerWeights, ModelWeights


class LlamaModel:
    """Reads a batch of tokens, writes their KV into the cache, returns logits."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, kernels: Kernels) -> None:
        self._config, self._weights, self._kernels = config, weights, kernels

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits [sequences, vocab_size] of the token after each sequence, in the engine's dtype."""
        x = functional.embedding(batch.token_ids, self._weights.embedding)
        last = len(self._weights.layers) - 1
        for i, layer in enumerate(self._weights.layers):
            x = self._attend(i, layer, x, batch)
            if i == last and batch.last_rows is not None:
                x = x.index_select(0, batch.last_rows)  # nothing after this looks at other rows
            x = self._feed_forward(layer, x)
        return self._weights.head(self._weights.final_norm(x))

    def _attend(self, i: int, layer: LayerWeights, x: Tensor, batch: Batch) -> Tensor:
        """The attention half of a block, residual included. ``x``: [tokens, hidden]."""
        c = self._config
        groups = layer.qkv(layer.attention_norm(x)).view(-1, c.num_kv_heads, c.group_size + 2, c.head_dim)
        if layer.head_norm is not None:
            groups[:, :, :-1] = layer.head_norm(groups[:, :, :-1])
        groups = batch.store(i, groups)
        return layer.attention_out.plus(batch.attention(i, groups), x)

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """The feed-forward half of a block, residual included. ``x``: [tokens, hidden]."""
        return layer.down.plus(self._kernels.gate(layer.gate_up(layer.mlp_norm(x))), x)
