"""One rank's part of the model with its KV memory, ready to run steps: all of the engine that touches tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tandem.deployment import Deployment, Worker
from tandem.engines.base import LoadingSink
from tandem.engines.torch.batch import BatchBuilder
from tandem.engines.torch.checkpoint import Checkpoint
from tandem.engines.torch.config import ModelConfig, read_config
from tandem.engines.torch.kernels import choose_kernels
from tandem.engines.torch.kv_cache import KvCache, blocks_that_fit
from tandem.engines.torch.logits import StepLogits, merge, size_of, summarize, to_bytes
from tandem.engines.torch.memory import collapse_private_memory, keep_freed_memory
from tandem.engines.torch.model import LlamaModel
from tandem.engines.torch.sharding import Shard
from tandem.engines.torch.weights import load_weights
from tandem.errors import TandemError
from tandem.messages import StepPlan
from tandem.parallel.collectives import Collectives, choose_collectives
from tandem.parallel.group import RankGroup
from tandem.parallel.partition import vocab_of

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class ModelRunner:
    """Runs one step at a time; all ranks of a group run the same ones."""

    def __init__(
        self, shard: Shard, model: LlamaModel, cache: KvCache, builder: BatchBuilder, ranks: Collectives, threads: int
    ) -> None:
        self.shard, self.cache, self.ranks = shard, cache, ranks
        self._model, self._builder, self._threads = model, builder, threads

    def use_in_this_thread(self) -> None:
        """Call once in each thread that runs steps: oneDNN's number of threads is a property of the caller."""
        if self.cache.device.type == "cpu":
            torch.set_num_threads(self._threads)

    def run(self, plan: StepPlan) -> StepLogits | None:
        """One pass through the model: the logits of the plan's rows; on the leader alone, None elsewhere."""
        logits = self._model.forward(self._builder.build(plan))
        part = None if logits is None else summarize(logits, plan.whole_logits, self.shard.vocab.start)
        return part if self.shard.is_whole else self._collect(part, plan)

    def _collect(self, part: StepLogits | None, plan: StepPlan) -> StepLogits | None:
        rows, asked = len(plan.rows), len(plan.whole_logits)
        partition, vocab_size = self.shard.partition, self.shard.whole.vocab_size
        sizes = [
            size_of(rows, asked, len(vocab_of(partition, rank, vocab_size)))
            for rank in range(partition.tensor_parallel_size)
        ]
        parts = self.ranks.collect(np.empty(0, np.uint8) if part is None else to_bytes(part), sizes)
        return merge(parts, rows, asked) if parts else None


def load_runner(deployment: Deployment, worker: Worker, group: RankGroup, loading: LoadingSink) -> ModelRunner:
    """Read this rank's part of the checkpoint and allocate the KV cache that the deployment asks for. All ranks of the
    group call this at the same time.

    Raises:
        TandemError: ``invalid_request``: what in the deployment or the checkpoint cannot be had.
    """
    device = _device(worker, group.rank)
    threads = deployment.threads_of(worker, group.rank)
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()
    model_dir, dtype = Path(deployment.model.path), DTYPES[deployment.model.dtype]
    shard = Shard(read_config(model_dir), group.partition, group.rank)
    block_size = deployment.kv.block_size
    block_bytes = block_size * shard.config.kv_bytes_per_token(dtype.itemsize)
    num_blocks = min(group.gather(blocks_that_fit(worker.kv_bytes, block_bytes)))  # a block has its part on every rank
    cache = KvCache(shard.config, block_size, num_blocks, dtype, device)
    ranks = choose_collectives(group, device, worker.hosts[0] if worker.hosts else "127.0.0.1")
    loading("kernels", 0.0)
    kernels = choose_kernels(shard.config, cache, max_model_len(deployment, shard.whole), dtype)
    loading("weights", 0.0)
    checkpoint = Checkpoint(model_dir, shard, dtype, device)
    weights = load_weights(shard, checkpoint, kernels, ranks, lambda done: loading("weights", done))
    model = LlamaModel(shard, weights, kernels, ranks, dtype)
    if device.type == "cpu":
        collapse_private_memory()
    return ModelRunner(shard, model, cache, BatchBuilder(cache, kernels, dtype), ranks, threads)


def max_model_len(deployment: Deployment, config: ModelConfig) -> int:
    """Most tokens of prompt and answer together.

    Raises:
        TandemError: ``invalid_request``: the deployment asks for more than the model has.
    """
    asked = deployment.model.max_model_len
    if asked is not None and asked > config.context:
        raise TandemError(
            "invalid_request", f"model.max_model_len: {asked} is more than the model's context, {config.context} tokens"
        )
    return asked or config.context


def _device(worker: Worker, rank: int) -> torch.device:
    device = worker.device_of(rank)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise TandemError(
            "invalid_request", f'worker.devices: {device!r}, but torch sees no CUDA device; use devices = ["cpu"]'
        )
    return torch.device(device)
