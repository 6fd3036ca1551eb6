"""The tensors of a checkpoint, memory-mapped, of which a rank reads only its own part.

That part is cut out of the whole model's files, or lies ready in a file of its own, as ``build/shard.py`` writes it:
``shards/tp3-pp1/rank-0.safetensors`` beside them. So a host of a group needs no more than its ranks' files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tandem.engines.torch.sharding import Shard
from tandem.errors import TandemError
from tandem.messages import Partition


class Checkpoint:
    """One rank's tensors by name, cast on reading."""

    def __init__(self, model_dir: Path, shard: Shard, dtype: torch.dtype, device: torch.device) -> None:
        """
        Raises:
            TandemError: ``invalid_request``: there are no files, they cannot be read, or were cut from another model.
        """
        self._shard, self._dtype, self._device = shard, dtype, device
        self._files: dict[str, Any] = {}
        own = shard_file(model_dir, shard.partition, shard.rank)
        self._is_cut = not shard.is_whole and own.exists()
        paths = [own] if self._is_cut else sorted(model_dir.glob("*.safetensors"))
        if not paths:
            raise TandemError("invalid_request", f"model.path: no *.safetensors file in {model_dir}")
        for path in paths:
            self._open(path)
        if self._is_cut:
            self._check_origin(own, read_fingerprint(model_dir))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """This rank's part of one tensor, in the engine's dtype and on its device. ``shape`` is the whole tensor's.

        Raises:
            TandemError: ``invalid_request``: it is missing, or has another shape than config.json says.
        """
        if name not in self._files:
            raise TandemError("invalid_request", f"the checkpoint lacks the tensor {name}")
        cut = self._shard.cut(name)
        stored = cut.shape(shape) if cut is not None and self._is_cut else shape
        view: Any = self._files[name].get_slice(name)
        if tuple(view.get_shape()) != stored:
            raise TandemError(
                "invalid_request", f"tensor {name} has shape {view.get_shape()}; config.json asks for {list(stored)}"
            )
        if cut is None or stored != shape:
            tensor: Tensor = self._files[name].get_tensor(name)
        else:
            tensor = cut.take(view)
        return tensor.to(self._device, self._dtype)

    def read_bias(self, name: str, size: int) -> Tensor | None:
        """A bias of ``size`` in the whole model; None where the checkpoint has none, or another rank adds it."""
        return self.read(name, (size,)) if name in self and self._shard.holds(name) else None

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise TandemError("invalid_request", f"cannot read {path}: {error}") from error

    def _check_origin(self, path: Path, fingerprint: str) -> None:
        origin = (next(iter(self._files.values())).metadata() or {}).get("fingerprint")
        if origin != fingerprint:
            raise TandemError(
                "invalid_request",
                f"{path} was cut from model {origin}, but tandem.json names {fingerprint}; run build/shard.py again",
            )


def shard_file(model_dir: Path, partition: Partition, rank: int) -> Path:
    """Where ``build/shard.py`` puts the part of one rank."""
    split = f"tp{partition.tensor_parallel_size}-pp{partition.pipeline_parallel_size}"
    return model_dir / "shards" / split / f"rank-{rank}.safetensors"


def read_fingerprint(model_dir: Path) -> str:
    """The hash over configuration and weights that ``build/`` wrote beside the checkpoint.

    Raises:
        TandemError: ``invalid_request``; says which command writes it.
    """
    path = model_dir / "tandem.json"
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError) as error:
        raise TandemError(
            "invalid_request",
            f"cannot read the field fingerprint of {path}: {error}; `python build/convert.py SOURCE OUT` writes it",
        ) from error
