"""Matrix products with fixed weights. On CPU in bf16, oneDNN with prepacked weights is 1.2 to 2 times plain torch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tandem.parallel.collectives import Collectives


class Linear(Protocol):
    """x → x·Wᵀ + b."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x``: [rows, in]; returns [rows, out] in the same dtype."""
        ...

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The product plus ``residual`` [rows, out]."""
        ...


class PlainLinear:
    """Torch's own product: any device and dtype, exact in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """As in ``Linear``."""
        return functional.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """As in ``Linear``."""
        return residual + functional.linear(x, self._weight, self._bias)


class RowParallelLinear:
    """A layer of which each rank has some columns; their products are summed over the pipeline stage."""

    def __init__(self, own: Linear, ranks: Collectives, *, adds_residual: bool) -> None:
        """``own`` has this rank's columns. On one rank of the stage ``adds_residual`` is true, and only there may it
        have a bias."""
        self._own, self._ranks, self._adds_residual = own, ranks, adds_residual

    def __call__(self, x: Tensor) -> Tensor:
        """As in ``Linear``."""
        return self._ranks.sum(self._own(x))

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """As in ``Linear``."""
        return self._ranks.sum(self._own.plus(x, residual) if self._adds_residual else self._own(x))


class PackedLinear:
    """oneDNN with the weight reordered once into the blocks its kernels read; sums in fp32.

    oneDNN and torch each keep a kernel for every number of rows they have seen, up to a thousand of them: about 600 KiB
    and 5 ms apiece for every shape of weight. So rows are filled up to one of few numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._run_plus = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        """As in ``Linear``."""
        result: Tensor = self._run(_filled(x), self._weight, self._bias, "none", [], "")
        return result[: len(x)]

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """As in ``Linear``; the sum is fused and rounded once."""
        result: Tensor = self._run_plus(_filled(x), _filled(residual), self._weight, self._bias, "add")
        return result[: len(x)]


def padded_rows(rows: int) -> int:
    """Up to 32 ``rows`` itself, beyond that the next of eight numbers in each octave: at most an eighth more."""
    step = 1 if rows <= 32 else 1 << ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def _filled(x: Tensor) -> Tensor:
    """``x`` [rows, in] with rows of zeros up to ``padded_rows``."""
    missing = padded_rows(len(x)) - len(x)
    return functional.pad(x, (0, 0, 0, missing)) if missing else x


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The quickest form of one layer on the device and in the dtype of ``weight`` [out, in]."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and packs():
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def packs() -> bool:
    """Whether this CPU and this build of torch have oneDNN's bf16 products."""
    return bool(torch._C._has_mkldnn) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
