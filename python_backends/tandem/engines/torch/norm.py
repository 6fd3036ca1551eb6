"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467), computed in fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RmsNorm:
    """x → x / sqrt(mean(x²) + eps) · weight, over the last dimension.

    With n = |x|, that is x / hypot(n, sqrt(size·eps)) · weight·sqrt(size): four operations instead of the eight that
    ``torch.rms_norm`` takes on CPU, where at a few rows each costs as much as the arithmetic.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        """``weight``: [..., size]; broadcasts over the rows."""
        size = weight.shape[-1]
        self._weight = weight.float() * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """``x``: [..., size], any dtype; returns the same shape and dtype."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide / torch.hypot(length, self._floor)).mul_(self._weight).to(x.dtype)
