"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3 (dense), SmolLM2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tandem.engines.torch.batch import Batch
from tandem.engines.torch.kernels import Kernels
from tandem.engines.torch.sharding import Shard
from tandem.engines.torch.weights import LayerWeights, ModelWeights
from tandem.parallel import heartbeat
from tandem.parallel.collectives import Collectives


class LlamaModel:
    """One rank's part: reads a batch of tokens, writes their KV into the cache, returns logits."""

    def __init__(
        self, shard: Shard, weights: ModelWeights, kernels: Kernels, ranks: Collectives, dtype: torch.dtype
    ) -> None:
        self._shard, self._config = shard, shard.config
        self._weights, self._kernels, self._ranks, self._dtype = weights, kernels, ranks, dtype

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor | None:
        """Logits [sequences, own part of the vocabulary] of the token after each sequence, in the engine's dtype.

        None where a later pipeline stage makes them.
        """
        x = self._embed(batch.token_ids)
        last = len(self._weights.layers) - 1 if self._shard.is_last_stage else None
        for i, layer in enumerate(self._weights.layers):
            x = self._attend(i, layer, x, batch)
            if i == last and batch.last_rows is not None:
                x = x.index_select(0, batch.last_rows)  # nothing after this looks at other rows
            x = self._feed_forward(layer, x)
            heartbeat.advance()
        if self._weights.head is None or self._weights.final_norm is None:
            self._ranks.send_on(x)
            return None
        return self._weights.head(self._weights.final_norm(x))

    def _embed(self, token_ids: Tensor) -> Tensor:
        """What enters the first layer of this stage: [tokens, hidden]."""
        table, vocab = self._weights.embedding, self._shard.vocab
        if not self._shard.is_first_stage or table is None:
            shape = (token_ids.shape[0], self._config.hidden_size)
            return self._ranks.receive(torch.empty(shape, dtype=self._dtype, device=token_ids.device))
        if len(vocab) == self._config.vocab_size:
            return functional.embedding(token_ids, table)
        elsewhere = (token_ids < vocab.start) | (token_ids >= vocab.stop)
        x = functional.embedding((token_ids - vocab.start).masked_fill_(elsewhere, 0), table)
        return self._ranks.sum(x.masked_fill_(elsewhere.unsqueeze(-1), 0))

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
