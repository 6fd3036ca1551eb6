"""Finding the Triton server: the one that is there (NVIDIA's container), or the embedded one."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import TandemError
from tandem.triton.home import home_dir
from tandem.triton.libpython import find_libpython, libpython_name, python_minor

EMBEDDED_VERSION = "0.7.0"
"""Of the nvidia-pytriton package; it carries Triton 2.51.0."""

EMBEDDED_PYTHONS = ("3.10", "3.11", "3.12")
"""The embedded stub needs numpy 1.26, which is published up to Python 3.12."""

_CONTAINER_DIR = Path("/opt/tritonserver")


@dataclass(frozen=True)
class TritonRuntime:
    """One Triton server on disk."""

    binary: Path
    backends: Path
    """Holds ``python/libtriton_python.so`` and the stub."""
    caches: Path | None
    libraries: tuple[Path, ...]
    """Directories its libraries lie in, for LD_LIBRARY_PATH."""
    libpython: Path | None
    """The library its stub links, where it would not be found by itself."""
    embedded: bool

    def environment(self, link_dir: Path, inherited: str | None) -> dict[str, str]:
        """The variables its processes need beyond the caller's own, whose LD_LIBRARY_PATH is ``inherited``.

        Only a link to libpython goes on the library path, in ``link_dir`` (created): a whole ``lib`` directory
        there would put its other libraries before the system's.
        """
        directories = [*self.libraries]
        if self.libpython is not None:
            link_dir.mkdir(parents=True, exist_ok=True)
            link = link_dir / libpython_name()
            link.unlink(missing_ok=True)
            link.symlink_to(self.libpython)
            directories.insert(0, link_dir)
        path = [*map(str, directories), *([inherited] if inherited else [])]
        return {"LD_LIBRARY_PATH": ":".join(path)} if path else {}


def find_runtime() -> TritonRuntime:
    """The server to use: ``TANDEM_TRITON_DIR``, ``tritonserver`` on the PATH, NVIDIA's container, the embedded one.

    Raises:
        TandemError: ``environment``, saying what is missing and how to get it.
    """
    if found := _find_installed():
        return _installed(*found)
    return _embedded(embedded_dir())


def brings_server() -> bool:
    """Whether this machine has a Triton server, so that the embedded one is not needed."""
    return _find_installed() is not None


def _find_installed() -> tuple[Path, str] | None:
    """Root directory of a server that somebody else installed, and how it was found."""
    if given := os.environ.get("TANDEM_TRITON_DIR"):
        return Path(given).expanduser(), "TANDEM_TRITON_DIR"
    if found := shutil.which("tritonserver"):
        return Path(found).resolve().parents[1], "PATH"
    if (_CONTAINER_DIR / "bin" / "tritonserver").is_file():
        return _CONTAINER_DIR, "NVIDIA's container"
    return None


def embedded_dir() -> Path:
    """Where the embedded server is installed; one for each Python, since its stub is."""
    return home_dir() / "triton" / f"nvidia-pytriton-{EMBEDDED_VERSION}-py{python_minor()}"


def check_python() -> None:
    """Whether the embedded server can run models with this Python.

    Raises:
        TandemError: ``environment``, naming the versions it can.
    """
    if python_minor() not in EMBEDDED_PYTHONS:
        raise TandemError(
            "environment",
            f"the embedded Triton server runs models with Python {', '.join(EMBEDDED_PYTHONS)}; this is Python "
            f"{python_minor()} ({sys.executable}). Set up again with one of those: make clean, then "
            f"make PYTHON=/path/to/python3.11 …; or use a Triton server of your own: TANDEM_TRITON_DIR",
        )


def _installed(root: Path, source: str) -> TritonRuntime:
    """A server that somebody else installed: ``root`` as in NVIDIA's container."""
    binary, backends = root / "bin" / "tritonserver", root / "backends"
    for needed in (binary, backends / "python" / "libtriton_python.so", backends / "python" / _STUB):
        if not needed.is_file():
            raise TandemError(
                "environment",
                f"the Triton server at {root} (from {source}) has no {needed.relative_to(root)}; "
                f"set TANDEM_TRITON_DIR to a complete one, e.g. {_CONTAINER_DIR} in NVIDIA's container",
            )
    caches = root / "caches"
    return TritonRuntime(binary, backends, caches if caches.is_dir() else None, (root / "lib",), None, embedded=False)


def _embedded(site: Path) -> TritonRuntime:
    """The server in the unpacked nvidia-pytriton package."""
    check_python()
    if not site.is_dir():
        raise TandemError(
            "environment",
            "there is no Triton server on this machine: neither TANDEM_TRITON_DIR nor tritonserver on the PATH, and "
            f"the embedded one is not installed for Python {python_minor()}. Install it: "
            f"{sys.executable} -m tandem.triton.install",
        )
    root = site / "pytriton" / "tritonserver"
    libraries = (site / "nvidia_pytriton.libs",)
    return TritonRuntime(
        root / "bin" / "tritonserver", root / "backends", root / "caches", libraries, find_libpython(), embedded=True
    )


_STUB = "triton_python_backend_stub"
