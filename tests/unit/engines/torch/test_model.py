"""The forward pass against transformers on random checkpoints of every family, in fp32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tandem.engines.torch.runner import ModelRunner
from tandem.engines.torch.scheduler import Step
from tandem.kv.blocks import BlockPool
from tests.checkpoints import KINDS
from tests.unit.engines.torch.support import (
    generate,
    make_model,
    make_prompts,
    make_runner,
    make_sequence,
    reference,
    run_step,
    step_logits,
)

TOLERANCE = 1e-4
"""Absolute, of logits that reach 20 and more."""


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelRunner, PreTrainedModel]:
    """One kind of model in Tandem and in transformers."""
    model_dir = make_model(request.param, tmp_path_factory.mktemp(request.param))
    return make_runner(model_dir), reference(model_dir)


def all_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


def greedy(model: PreTrainedModel, token_ids: list[int], count: int) -> list[int]:
    prompt = torch.tensor([token_ids])
    model.generation_config.eos_token_id = None
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
    return out[0, len(token_ids) :].tolist()


def test_prefill_logits_of_a_packed_batch(both: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, model = both
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, p) for p in make_prompts(1, 3, 4, 64, 65, 127)]
    ordered, logits = step_logits(runner, Step(True, sequences))
    assert ordered == sequences
    for sequence, row in zip(sequences, logits, strict=True):
        expected = all_logits(model, sequence.token_ids)[-1]
        assert torch.allclose(row, expected, atol=TOLERANCE, rtol=0)


def test_decode_logits_of_a_batch_of_mixed_lengths(both: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, model = both
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, p) for p in make_prompts(110, 1, 40, 3, 4, 5, 8)]
    for sequence, choice in run_step(runner, Step(True, sequences)):
        sequence.append(choice.token_id)
    ordered, logits = step_logits(runner, Step(False, sequences))
    assert sorted(map(id, ordered)) == sorted(map(id, sequences))
    for sequence, row in zip(ordered, logits, strict=True):
        expected = all_logits(model, sequence.token_ids)[-1]
        assert torch.allclose(row, expected, atol=TOLERANCE, rtol=0)


def test_prefill_after_tokens_that_are_in_the_cache(both: tuple[ModelRunner, PreTrainedModel]) -> None:
    """A prompt read in three pieces, beside another prompt, ends in the same logits."""
    runner, model = both
    pool = BlockPool(runner.cache.num_blocks)
    (prompt,) = make_prompts(110)
    sequence, other = make_sequence(pool, prompt), make_sequence(pool, make_prompts(30)[0])
    whole = sequence.token_ids
    for end in (7, 30):
        sequence.token_ids = whole[:end]
        step_logits(runner, Step(True, [sequence]))
        sequence.num_cached = end
    sequence.token_ids = whole
    _, logits = step_logits(runner, Step(True, [other, sequence]))
    assert torch.allclose(logits[1], all_logits(model, prompt)[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_greedy_tokens_in_any_order(both: tuple[ModelRunner, PreTrainedModel], size: int) -> None:
    runner, model = both
    rng = random.Random(size)
    chosen = make_prompts(*(rng.choice([1, 2, 15, 16, 17, 60, 110]) for _ in range(size)))
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, p, max_tokens=12) for p in chosen]
    answers = generate(runner, sequences, 12)
    for prompt, answer in zip(chosen, answers, strict=True):
        assert answer == greedy(model, prompt, 12)


def test_scattered_blocks(both: tuple[ModelRunner, PreTrainedModel]) -> None:
    """Block tables that descend and interleave: the order of blocks in memory means nothing."""
    runner, model = both
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, p, max_tokens=12) for p in make_prompts(33, 20)]
    blocks = list(reversed([*sequences[0].block_ids, *sequences[1].block_ids]))
    first = len(sequences[0].block_ids)
    sequences[0].block_ids, sequences[1].block_ids = blocks[:first], blocks[first:]
    answers = generate(runner, sequences, 12)
    assert answers == [greedy(model, s.token_ids[: s.num_prompt], 12) for s in sequences]


@pytest.mark.parametrize("kind", ["llama_biased", "qwen3"])
def test_bfloat16_follows_fp32(tmp_path: Path, kind: str) -> None:
    """The quick bf16 path (packed weights, compiled kernels) computes the same function, to bf16's precision."""
    model_dir = make_model(kind, tmp_path)
    runner, model = make_runner(model_dir, "bfloat16"), reference(model_dir)
    pool = BlockPool(runner.cache.num_blocks)
    sequences = [make_sequence(pool, p) for p in make_prompts(5, 110, 33)]
    for is_prefill in (True, False, False):
        ordered, logits = step_logits(runner, Step(is_prefill, sequences))
        for sequence, row in zip(ordered, logits, strict=True):
            expected = all_logits(model, sequence.token_ids)[-1]
            assert torch.nn.functional.cosine_similarity(row.float(), expected, dim=0) > 0.999
            sequence.append(int(expected.argmax()))
