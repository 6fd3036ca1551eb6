"""Small random models of every family, and ways to run the engine's parts on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from tandem.deployment import Deployment, Kv, Model, Worker
from tandem.engines.torch.runner import ModelRunner, load_runner
from tandem.engines.torch.scheduler import Step
from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import BlockPool
from tandem.messages import Generate, Sampling, Stopping

VOCAB = 320
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "llama3": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE),
    "mistral": lambda: MistralConfig(**_SHAPE, tie_word_embeddings=False, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=False),
}


def make_checkpoint(family: str, directory: Path, seed: int = 0) -> Path:
    """A random checkpoint with lively logits: wide weights, norms and biases that are not 1 and 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 0.15)
    model.save_pretrained(directory)
    (directory / "tandem.json").write_text(json.dumps({"fingerprint": f"{family}-{seed}"}))
    return directory


def reference(model_dir: Path) -> PreTrainedModel:
    """The same model in transformers, fp32."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def make_deployment(model_dir: Path, dtype: str = "float32", block_size: int = 4, **worker: Any) -> Deployment:
    """A deployment of one worker of each stage, one thread each."""
    common = {"threads": 1, "kv_memory": "4MiB"} | worker
    return Deployment(
        name="test",
        model=Model(path=str(model_dir), dtype=dtype),  # type: ignore[arg-type]
        worker=[
            Worker(name="prefill_0", stage="prefill", **common),
            Worker(name="decode_0", stage="decode", **common),
        ],
        kv=Kv(block_size=block_size),
    )


def make_runner(model_dir: Path, dtype: str = "float32", block_size: int = 4) -> ModelRunner:
    """The model alone, with its cache."""
    deployment = make_deployment(model_dir, dtype, block_size)
    return load_runner(deployment, deployment.worker[0], lambda _what, _done: None)


def make_work(request_id: str, token_ids: list[int], max_tokens: int = 8, **sampling: Any) -> Generate:
    """Plain work for one engine."""
    return Generate(
        request_id=request_id,
        token_ids=token_ids,
        sampling=Sampling(**sampling),
        stopping=Stopping(max_tokens=max_tokens),
    )


def make_sequence(pool: BlockPool, token_ids: list[int], block_size: int = 4, max_tokens: int = 8) -> Sequence:
    """A sequence with all its blocks, as the scheduler would start it."""
    sequence = Sequence.of(make_work("r", token_ids, max_tokens), 0.0)
    sequence.block_ids = pool.allocate(sequence.blocks_needed(block_size))
    return sequence


def generate(runner: ModelRunner, sequences: list[Sequence], steps: int) -> list[list[int]]:
    """The first ``steps`` greedy tokens of each sequence, all in one batch."""
    for step in range(steps):
        for sequence, choice in runner.run(Step(step == 0, sequences)):
            sequence.append(choice.token_id)
    return [s.token_ids[s.num_prompt :] for s in sequences]
