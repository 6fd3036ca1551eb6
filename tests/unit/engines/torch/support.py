"""Small random models of every family, and ways to run the engine's parts on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tandem.deployment import Deployment, Kv, Model, Worker
from tandem.engines.torch.plan import make_plan
from tandem.engines.torch.runner import ModelRunner, load_runner
from tandem.engines.torch.sampler import Choice, choose
from tandem.engines.torch.scheduler import Step
from tandem.engines.torch.sequence import Sequence
from tandem.kv.blocks import BlockPool
from tandem.messages import Generate, Sampling, Stopping
from tandem.parallel.group import RankGroup
from tests.checkpoints import make_random_model

VOCAB = 400


def make_model(kind: str, directory: Path) -> Path:
    """A random model whose shapes differ from one another wherever they can, so that no mix-up goes unseen."""
    return make_random_model(
        kind, directory, vocab_size=VOCAB, hidden_size=72, num_attention_heads=6, num_hidden_layers=3
    )


def reference(model_dir: Path) -> PreTrainedModel:
    """The same model in transformers, fp32."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def make_deployment(
    model_dir: Path, dtype: str = "float32", block_size: int = 4, name: str = "0", **worker: Any
) -> Deployment:
    """A deployment of one worker of each stage, one thread each."""
    common = {"threads": 1, "kv_memory": "4MiB"} | worker
    return Deployment(
        name="test",
        model=Model(path=str(model_dir), dtype=dtype),  # type: ignore[arg-type]
        worker=[
            Worker(name=f"prefill_{name}", stage="prefill", **common),
            Worker(name=f"decode_{name}", stage="decode", **common),
        ],
        kv=Kv(block_size=block_size),
    )


def make_runner(model_dir: Path, dtype: str = "float32", block_size: int = 4, **worker: Any) -> ModelRunner:
    """The model alone, with its cache."""
    deployment = make_deployment(model_dir, dtype, block_size, **worker)
    return load_runner(deployment, deployment.worker[0], RankGroup.current(), lambda _what, _done: None)


def make_prompts(*lengths: int) -> list[list[int]]:
    """Random prompts, the same in every run."""
    rng = random.Random(sum(lengths))
    return [[rng.randrange(VOCAB) for _ in range(n)] for n in lengths]


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
    sequence = Sequence.of(make_work("r", token_ids, max_tokens), 0.0, block_size)
    sequence.block_ids = pool.allocate(sequence.blocks_needed)
    return sequence


def run_step(runner: ModelRunner, step: Step) -> list[tuple[Sequence, Choice]]:
    """The next token of each of the step's sequences, in some order."""
    sequences, plan = make_plan(step, runner.cache.block_size)
    logits = runner.run(plan)
    assert logits is not None
    return list(zip(sequences, choose(logits, sequences), strict=True))


def step_logits(runner: ModelRunner, step: Step) -> tuple[list[Sequence], Tensor]:
    """One step without choosing: the sequences in row order, and logits [sequences, vocab_size]."""
    sequences, plan = make_plan(step, runner.cache.block_size)
    logits = runner.run(msgspec.structs.replace(plan, whole_logits=list(range(len(sequences)))))
    assert logits is not None
    return sequences, torch.from_numpy(logits.whole)


def generate(runner: ModelRunner, sequences: list[Sequence], steps: int) -> list[list[int]]:
    """The first ``steps`` greedy tokens of each sequence, all in one batch."""
    for step in range(steps):
        for sequence, choice in run_step(runner, Step(step == 0, sequences)):
            sequence.append(choice.token_id)
    return [s.token_ids[s.num_prompt :] for s in sequences]
