"""The conversion, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conversion.architecture import select_tensors
from conversion.fingerprint import WeightsHash
from conversion.gguf_source import GgufSource
from conversion.hf_source import HfSource
from conversion.output import describe, identify, locked, read_fingerprint_if_current, replacing
from conversion.safetensors_file import size_of, write_tensors
from conversion.source import Source, refuse
from tandem.engines.torch.config import read_config

ProgressSink = Callable[[int, int], None]
"""Takes bytes of weights written and bytes in all."""


def convert(source: Path, out: Path, progress: ProgressSink) -> str:
    """Convert a GGUF file or a Hugging Face directory; at once if ``out`` already holds it.

    Returns: the fingerprint of the model.

    Raises:
        TandemError: ``invalid_request``: the source cannot be converted; names the file and the problem.
            ``environment``: ``out`` is taken by something else.
    """
    if not source.exists():
        raise refuse(source, "no such file or directory; give a GGUF file or a Hugging Face directory")
    identity = identify(source)
    with locked(out):
        current = read_fingerprint_if_current(out, identity)
        if current is not None:
            return current
        with replacing(out) as partial:
            opened: Source = HfSource(source) if source.is_dir() else GgufSource(source)
            fingerprint = write_checkpoint(source, opened, partial, progress)
            describe(partial, fingerprint, read_config(partial).context, identity)
    return fingerprint


def write_checkpoint(path: Path, source: Source, directory: Path, progress: ProgressSink) -> str:
    """Write all files but tandem.json; returns the fingerprint. ``path`` is named in errors."""
    _write_json(directory / "config.json", source.config)
    _write_json(directory / "generation_config.json", source.generation_config)
    source.write_tokenizer(directory)
    specs = select_tensors(path, source.tensors(), read_config(directory), source.config)
    total, done = sum(map(size_of, specs)), 0

    def wrote(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    weights_hash = WeightsHash()
    write_tensors(directory / "model.safetensors", specs, weights_hash, wrote)
    return weights_hash.fingerprint(source.config)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
