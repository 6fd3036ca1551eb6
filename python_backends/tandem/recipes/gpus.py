"""The GPUs that recipes name, and what they can compute with."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.recipes.recipe import GpuName, Quantization

_ALL: frozenset[Quantization] = frozenset({"none", "int8_weights", "int4_weights", "int4_awq"})
_FP8: frozenset[Quantization] = _ALL | {"fp8"}


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    title: str
    memory_bytes: int
    """Decimal gigabytes of the data sheet, a little less than what nvidia-smi shows: to be on the safe side."""
    quantizations: frozenset[Quantization]
    source: str


def _gb(number: int) -> int:
    return number * 10**9


GPUS: dict[GpuName, Gpu] = {
    "h100": Gpu("H100 80 GB", _gb(80), _FP8 | {"fp8_block"}, "NVIDIA H100 data sheet, SXM5"),
    "h200": Gpu("H200 141 GB", _gb(141), _FP8 | {"fp8_block"}, "NVIDIA H200 data sheet, SXM"),
    "b200": Gpu("B200 180 GB", _gb(180), _FP8 | {"fp8_block", "nvfp4"}, "NVIDIA DGX B200 data sheet"),
    "a100-80": Gpu("A100 80 GB", _gb(80), _ALL, "NVIDIA A100 data sheet, SXM4; no FP8"),
    "a100-40": Gpu("A100 40 GB", _gb(40), _ALL, "NVIDIA A100 data sheet, SXM4; no FP8"),
    "l40s": Gpu("L40S 48 GB", _gb(48), _FP8, "NVIDIA L40S data sheet"),
}
