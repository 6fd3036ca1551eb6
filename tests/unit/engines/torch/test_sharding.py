"""Which part of a model is whose: together the ranks have everything, and each no more than it computes with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.engines.torch.config import ModelConfig
from tandem.engines.torch.sharding import EMBEDDING, FINAL_NORM, HEAD, Shard
from tandem.errors import TandemError
from tandem.messages import Partition

CONFIG = ModelConfig(
    family="qwen3",
    hidden_size=5,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    intermediate_size=8,
    vocab_size=11,
    context=64,
    rms_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    tied_embeddings=False,
)


@st.composite
def splits(draw: st.DrawFn) -> tuple[ModelConfig, Partition]:
    """Models, and partitions that divide them; KV heads replicated where there are more ranks than heads."""
    kv_heads, per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    tp = draw(st.sampled_from([n for n in range(1, 9) if kv_heads % n == 0 or n % kv_heads == 0]))
    groups = max(kv_heads, tp) * per_rank
    config = replace(
        CONFIG,
        num_kv_heads=kv_heads,
        num_heads=groups,
        intermediate_size=tp * draw(st.integers(1, 3)),
        num_layers=draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(tp, 20)),
        tied_embeddings=draw(st.booleans()),
    )
    return config, Partition(tensor_parallel_size=tp, pipeline_parallel_size=draw(st.integers(1, config.num_layers)))


def tensors(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole model, biases wherever a family has some."""
    queries, kv, hidden = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (c.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not c.tied_embeddings:
        shapes[HEAD] = (c.vocab_size, hidden)
    for i in range(c.num_layers):
        for name, out, into in (
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", c.intermediate_size, hidden),
            ("mlp.up_proj", c.intermediate_size, hidden),
            ("mlp.down_proj", hidden, c.intermediate_size),
        ):
            shapes[f"model.layers.{i}.{name}.weight"] = (out, into)
            shapes[f"model.layers.{i}.{name}.bias"] = (out,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}.weight"] = (hidden,)
        for norm in ("q_norm", "k_norm"):
            shapes[f"model.layers.{i}.self_attn.{norm}.weight"] = (c.head_dim,)
    return shapes


def take(shard: Shard, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The rank's part of a tensor whose elements are all different."""
    whole = np.arange(np.prod(shape)).reshape(shape)
    cut = shard.cut(name)
    if cut is None:
        return whole
    part: npt.NDArray[np.int64] = cut.take(whole)
    assert part.shape == cut.shape(shape)
    return part


@given(splits())
def test_the_ranks_of_a_stage_have_everything_together(split: tuple[ModelConfig, Partition]) -> None:
    config, partition = split
    shards = [Shard(config, partition, rank) for rank in range(partition.size)]
    for name, shape in tensors(config).items():
        whole = np.arange(np.prod(shape)).reshape(shape)
        holders = [shard for shard in shards if shard.holds(name)]
        stages = {shard.stage for shard in holders}
        twice = name == EMBEDDING and config.tied_embeddings and partition.pipeline_parallel_size > 1
        assert len(stages) == 1 + twice
        assert np.array_equal(np.unique(np.concatenate([take(s, name, shape).ravel() for s in holders])), whole.ravel())


@given(splits())
def test_what_is_summed_is_cut_once(split: tuple[ModelConfig, Partition]) -> None:
    """Columns of row-parallel layers are each one rank's, or they would count twice; their bias is one rank's too."""
    config, partition = split
    shards = [Shard(config, partition, rank) for rank in range(partition.size)]
    for name, shape in tensors(config).items():
        if "o_proj" in name or "down_proj" in name:
            parts = [take(s, name, shape).ravel() for s in shards if s.holds(name)]
            assert sum(part.size for part in parts) == np.prod(shape)


@given(splits())
def test_queries_meet_their_own_keys(split: tuple[ModelConfig, Partition]) -> None:
    """The query heads of a rank are those that share its KV heads, in their order."""
    config, partition = split
    for rank in range(partition.size):
        shard = Shard(config, partition, rank)
        layer = f"model.layers.{shard.layers.start}.self_attn."
        kv = config.num_kv_heads * config.head_dim
        keys = take(shard, f"{layer}k_proj.bias", (kv,))[:: config.head_dim] // config.head_dim
        queries = take(shard, f"{layer}q_proj.bias", (config.num_heads * config.head_dim,))
        heads = queries[:: config.head_dim] // config.head_dim
        own = shard.config
        assert list(keys) == list(shard.kv_heads)
        assert len(heads) == own.num_heads == own.num_kv_heads * own.group_size
        assert [head // config.group_size for head in heads] == [k for k in keys for _ in range(own.group_size)]


def test_what_does_not_divide_is_refused_with_what_does() -> None:
    with pytest.raises(TandemError, match=r"tensor_parallel_size: 3 does not divide .* give one of 1, 2, 4$"):
        Shard(CONFIG, Partition(tensor_parallel_size=3), 0)
    with pytest.raises(TandemError, match=r"pipeline_parallel_size: 4 is more than the model's 3 layers"):
        Shard(CONFIG, Partition(pipeline_parallel_size=4), 0)
