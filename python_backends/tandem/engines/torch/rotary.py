"""Rotary position embedding (https://arxiv.org/abs/2104.09864): pairs of a head's numbers, turned by the position.

Pairs stand next to each other (``interleave``), not half a head apart as in Hugging Face checkpoints, so that a pair
reads as one complex number. Queries and keys are permuted alike, so their products do not change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem.engines.torch.config import Llama3Rope, ModelConfig


def rotation_table(config: ModelConfig, length: int) -> Tensor:
    """cos + i·sin of every position and pair: complex64 [length, head_dim / 2], on CPU."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = _scale(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def _scale(frequencies: Tensor, rope: Llama3Rope) -> Tensor:
    """Llama 3.1's scaling: keep short wavelengths, stretch long ones, blend between (the model's reference code)."""
    wavelengths = 2 * math.pi / frequencies
    blend = (rope.original_context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = blend.clamp(0.0, 1.0)
    return frequencies * blend + frequencies / rope.factor * (1.0 - blend)


def interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (or its bias) from halves to pairs.

    Row j and row j + head_dim/2 of each head become rows 2j and 2j+1. ``weight``: [num_heads * head_dim, ...].
    """
    size = weight.shape[0] // num_heads
    halves = weight.reshape(num_heads, 2, size // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
