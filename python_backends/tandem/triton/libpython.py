"""Finding the shared library of the running Python, which Triton's Python backend links."""

from __future__ import annotations

import ctypes.util
import sys
import sysconfig
from pathlib import Path

from tandem.errors import TandemError

_COMMON_DIRS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
)


def find_libpython() -> Path:
    """The ``libpython3.X.so.1.0`` of the running interpreter's minor version.

    Raises:
        TandemError: ``environment``, saying what to install.
    """
    name = libpython_name()
    for directory in _candidate_dirs(name):
        path = directory / name
        if path.is_file():
            return path.resolve()
    version = python_minor()
    raise TandemError(
        "environment",
        f"Python {version} at {sys.base_prefix} comes without its shared library {name}, which Triton's Python "
        f"backend links. Debian or Ubuntu: apt install libpython{version}. Fedora: dnf install python{version}-libs. "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force {version}. "
        f"Or set up with another Python: make clean, then make PYTHON=/path/to/python3.11 …",
    )


def libpython_name() -> str:
    """The name the stub binary links, e.g. ``libpython3.11.so.1.0``."""
    return f"libpython{python_minor()}.so.1.0"


def python_minor() -> str:
    """Major and minor version of the running interpreter, e.g. ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _candidate_dirs(name: str) -> list[Path]:
    """Where the library may lie, likeliest first: what this process has loaded, its own prefix, the system's."""
    places = [*_loaded_dirs(name)]
    for variable in ("LIBDIR", "LIBPL"):
        if value := sysconfig.get_config_var(variable):
            places.append(Path(value))
    places.append(Path(sys.base_prefix) / "lib")
    found = ctypes.util.find_library(f"python{python_minor()}")
    if found and "/" in found:
        places.append(Path(found).parent)
    return [*places, *map(Path, _COMMON_DIRS)]


def _loaded_dirs(name: str) -> list[Path]:
    """Directory of the library where this interpreter itself is linked to it."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[-1] for line in lines if name in line)
    return sorted({Path(path).parent for path in paths if path.startswith("/")})
