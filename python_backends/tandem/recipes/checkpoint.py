"""How the weights of a Hugging Face checkpoint are quantized, as its own files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tandem.errors import TandemError

_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4_awq"}
"""NVIDIA's Model Optimizer: hf_quant_config.json, or ``quantization_config`` with its ``quant_algo``."""


def read_quantization(directory: Path) -> str:
    """``none``, one of a recipe's names, or what the checkpoint itself calls it where a recipe has no name for that.

    Raises:
        TandemError: ``invalid_request``: a file cannot be read.
    """
    optimizer = directory / "hf_quant_config.json"
    if optimizer.is_file():
        algorithm = str(_read(optimizer).get("quantization", {}).get("quant_algo"))
        return _MODELOPT.get(algorithm, algorithm)
    config = _read(directory / "config.json").get("quantization_config")
    if not config:
        return "none"
    method = str(config.get("quant_method"))
    if method == "fp8" and config.get("weight_block_size"):
        return "fp8_block"
    if method == "modelopt":
        algorithm = str(config.get("quant_algo"))
        return _MODELOPT.get(algorithm, algorithm)
    return {"awq": "int4_awq"}.get(method, method)


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise TandemError("invalid_request", f"{path}: cannot be read: {error}") from error
