"""The converted directory: written beside its place and moved there whole, so that it is never half there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tandem.errors import TandemError

FORMAT = 1
"""Of the converted directory; another number makes every directory be converted anew."""

_LOCK_TIMEOUT_S = 1800.0


def identify(source: Path) -> list[dict[str, Any]]:
    """What tells whether a source changed since it was converted: name, size and time of every file."""
    if source.is_dir():
        files = [path for path in source.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")]
    else:
        files = [source]
    stats = [(path.name, path.stat()) for path in sorted(files)]
    return [{"name": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats]


def read_fingerprint_if_current(out: Path, source: list[dict[str, Any]]) -> str | None:
    """The fingerprint of ``out`` if it is whole and was made from just this source, else None."""
    try:
        about = json.loads((out / "tandem.json").read_bytes())
        sizes = {name: (out / name).stat().st_size for name in about["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if about.get("format") != FORMAT or about.get("source") != source or about["files"] != sizes:
        return None
    return str(about["fingerprint"])


def describe(directory: Path, fingerprint: str, context: int, source: list[dict[str, Any]]) -> None:
    """Write tandem.json, the last file of a converted directory (build/README.md describes it)."""
    about = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "context": context,
        "source": source,
        "files": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
    }
    (directory / "tandem.json").write_text(json.dumps(about, indent=2) + "\n")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One conversion of ``out`` at a time; the lock goes with the process that holds it.

    Raises:
        TandemError: ``environment``: another process has been converting for too long.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f".{out.name}.lock"
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TandemError(
                        "environment", f"{path}: another process has held it for {_LOCK_TIMEOUT_S:.0f} s; end that one"
                    ) from error
                time.sleep(0.2)
        yield


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty directory to write into; it becomes ``out`` when all went well, and is removed when not.

    Call it under ``locked``: what an earlier, killed run left is removed.

    Raises:
        TandemError: ``environment``: something else is at ``out``.
    """
    if out.exists() and not (out / "tandem.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise TandemError("environment", f"{out}: something else is there; name another directory, or remove it")
    for stale in out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(stale)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            # A directory cannot be replaced in one step; killed between these, the next run converts anew.
            out.rename(out.parent / f"{partial.name}-old")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(out.parent / f"{partial.name}-old", ignore_errors=True)
