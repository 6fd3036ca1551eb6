"""One file for each rank of an engine group, with its part of every tensor alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from conversion.output import locked
from conversion.source import refuse
from tandem.engines.torch.checkpoint import read_fingerprint, shard_file
from tandem.engines.torch.config import read_config
from tandem.engines.torch.sharding import Shard
from tandem.messages import Partition


def write_shard(model_dir: Path, partition: Partition, rank: int) -> Path:
    """Cut one rank's part out of a converted model, unless it is there already; the file.

    Raises:
        TandemError: ``invalid_request``: it is no converted model, or cannot be split like this.
    """
    fingerprint, shard = read_fingerprint(model_dir), Shard(read_config(model_dir), partition, rank)
    path = shard_file(model_dir, partition, rank)
    with locked(path):
        if _fingerprint_of(path) != fingerprint:
            _write(path, _read(model_dir / "model.safetensors", shard), fingerprint)
    return path


def _fingerprint_of(path: Path) -> str | None:
    """What model a file was cut from; None where there is no whole file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("fingerprint")
    except (OSError, SafetensorError):
        return None


def _read(path: Path, shard: Shard) -> dict[str, Any]:
    """One rank's part of every tensor that it needs."""
    parts = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in filter(shard.holds, file.keys()):
                cut, whole = shard.cut(name), file.get_slice(name)
                part = file.get_tensor(name) if cut is None else cut.take(whole)
                parts[name] = part.contiguous()
    except (OSError, SafetensorError) as error:
        raise refuse(path, f"not a whole safetensors file ({error}); convert the model again") from error
    return parts


def _write(path: Path, parts: dict[str, Any], fingerprint: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        save_file(parts, partial, {"format": "pt", "fingerprint": fingerprint})
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
