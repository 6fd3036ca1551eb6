"""What every kind of checkpoint offers to the converter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tandem.errors import TandemError


@dataclass(frozen=True)
class TensorSpec:
    """One tensor to be written: its name is that of Hugging Face checkpoints."""

    name: str
    dtype: str
    """As safetensors spells it: ``F32``, ``BF16``, ``F16``."""
    shape: tuple[int, ...]
    load: Callable[[], bytes | memoryview]
    """Its bytes, row-major and little-endian. Called once, so that only one tensor is in memory at a time."""


class Source(Protocol):
    """A checkpoint that was opened and found to be of a supported architecture."""

    config: dict[str, Any]
    generation_config: dict[str, Any]

    def tensors(self) -> list[TensorSpec]:
        """All tensors that the checkpoint has.

        Raises:
            TandemError: ``invalid_request``: a tensor cannot be read.
        """
        ...

    def write_tokenizer(self, out: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template, if there is one)."""
        ...


def refuse(path: Path, problem: str) -> TandemError:
    """The error for a checkpoint that cannot be converted; it names the file and what is wrong with it."""
    return TandemError("invalid_request", f"{path}: {problem}")
