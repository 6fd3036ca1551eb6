"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467), computed in fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RmsNorm:
    """x → x / sqrt(mean(x²) + eps) · weight, over the last dimension.

    With n = |x|, that is x · (weight·sqrt(size)) / hypot(n, sqrt(size·eps)): fewer operations than ``torch.rms_norm``
    takes on CPU, where at a few rows each costs more than its arithmetic.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        """``weight``: [..., size]; broadcasts over the rows."""
        size = weight.shape[-1]
        self._weight = weight.float() * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """``x``: [..., size], any dtype; returns the same shape and dtype."""
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32).hypot_(self._floor)
        return torch.mul(x, self._weight).div_(length).to(x.dtype)
