"""The model with its KV memory, ready to run steps: everything of the engine that touches tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tandem.deployment import Deployment, Worker
from tandem.engines.base import LoadingSink
from tandem.engines.torch.batch import BatchBuilder
from tandem.engines.torch.config import ModelConfig, read_config
from tandem.engines.torch.kernels import choose_kernels
from tandem.engines.torch.kv_cache import KvCache, blocks_that_fit
from tandem.engines.torch.memory import collapse_private_memory, keep_freed_memory
from tandem.engines.torch.model import LlamaModel
from tandem.engines.torch.sampler import Choice, choose
from tandem.engines.torch.scheduler import Step
from tandem.engines.torch.sequence import Sequence
from tandem.engines.torch.weights import Checkpoint, load_weights
from tandem.errors import TandemError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class ModelRunner:
    """Runs one step at a time."""

    def __init__(
        self, config: ModelConfig, model: LlamaModel, cache: KvCache, builder: BatchBuilder, threads: int
    ) -> None:
        self.config, self.cache = config, cache
        self._model, self._builder, self._threads = model, builder, threads

    def use_in_this_thread(self) -> None:
        """Call once in each thread that runs steps: oneDNN's number of threads is a property of the caller."""
        if self.cache.device.type == "cpu":
            torch.set_num_threads(self._threads)

    def run(self, step: Step) -> list[tuple[Sequence, Choice]]:
        """One pass through the model: the next token of each of the step's sequences, in some order."""
        sequences, logits = self.logits(step)
        return list(zip(sequences, choose(logits, sequences), strict=True))

    def logits(self, step: Step) -> tuple[list[Sequence], Tensor]:
        """One pass, without choosing: the sequences in row order, and logits [sequences, vocab_size]."""
        batch = (self._builder.prefill if step.is_prefill else self._builder.decode)(step.sequences)
        return batch.sequences, self._model.forward(batch)


def load_runner(deployment: Deployment, worker: Worker, loading: LoadingSink) -> ModelRunner:
    """Read the checkpoint and allocate the KV cache that the deployment asks for.

    Raises:
        TandemError: ``invalid_request``: what in the deployment or the checkpoint cannot be had.
    """
    device = _device(worker)
    threads = deployment.threads_of(worker)
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()
    model_dir, dtype = Path(deployment.model.path), DTYPES[deployment.model.dtype]
    config = read_config(model_dir)
    block_size = deployment.kv.block_size
    block_bytes = block_size * config.kv_bytes_per_token(dtype.itemsize)
    cache = KvCache(config, block_size, blocks_that_fit(worker.kv_bytes, block_bytes), dtype, device)
    loading("kernels", 0.0)
    kernels = choose_kernels(config, cache, max_model_len(deployment, config), dtype)
    loading("weights", 0.0)
    checkpoint = Checkpoint(model_dir, dtype, device)
    weights = load_weights(config, checkpoint, kernels, lambda done: loading("weights", done))
    model = LlamaModel(config, weights, kernels)
    if device.type == "cpu":
        collapse_private_memory()
    return ModelRunner(config, model, cache, BatchBuilder(cache, kernels, dtype), threads)


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


def _device(worker: Worker) -> torch.device:
    device = worker.device_of(0)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise TandemError(
            "invalid_request", f'worker.devices: {device!r}, but torch sees no CUDA device; use devices = ["cpu"]'
        )
    return torch.device(device)
