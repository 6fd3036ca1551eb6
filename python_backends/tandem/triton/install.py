"""Install the embedded Triton server: ``python -m tandem.triton.install``.

The nvidia-pytriton package is unpacked into a directory of its own, without its dependencies (they ask for an
older numpy than engines may use). It appears there complete or not at all; what an interrupted install left is
removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import TandemError
from tandem.triton.libpython import find_libpython, python_minor
from tandem.triton.runtime import EMBEDDED_VERSION, brings_server, check_python, embedded_dir

_WHEELS = {
    "x86_64": "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "aarch64": "f99e07ee56fe065337453956afba17d2673e02ec6a632c3de26ce6e7b32a0898",
}
"""SHA-256 of the package for each machine it exists for."""

_GLIBC = (2, 35)
_STUB = "triton_python_backend_stub"


def install() -> Path:
    """Install the embedded server unless it is there already; returns its directory.

    Raises:
        TandemError: ``environment``, when this machine cannot run it or the download fails.
    """
    target = embedded_dir()
    check_machine()
    check_python()
    find_libpython()
    if target.is_dir():
        return target
    with _locked(target):
        if target.is_dir():
            return target
        for left_over in target.parent.glob(f"{target.name}.partial-*"):
            shutil.rmtree(left_over)
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        partial.mkdir()  # with the rights that the caller gives new directories: others may run the server
        try:
            _unpack(partial)
            _place_stub(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def check_machine() -> None:
    """Whether the embedded server runs on this machine at all.

    Raises:
        TandemError: ``environment``, naming what differs.
    """
    machine = f"{platform.system()} on {platform.machine()}"
    elsewhere = "use a Triton server of your own (TANDEM_TRITON_DIR), or NVIDIA's Triton container"
    if platform.system() != "Linux" or platform.machine() not in _WHEELS:
        expected = " or ".join(sorted(_WHEELS))
        raise TandemError(
            "environment", f"the embedded Triton server needs Linux on {expected}, not {machine}; {elsewhere}"
        )
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        raise TandemError(
            "environment",
            f"the embedded Triton server needs glibc {_GLIBC[0]}.{_GLIBC[1]} or newer (Debian 12, Ubuntu 22.04), "
            f"this machine has {library or 'another C library'} {version}; {elsewhere}",
        )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One install at a time; the lock goes with the process that holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(directory: Path) -> None:
    """Fetch the package, check its hash and unpack it into ``directory``."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(
            f"nvidia-pytriton=={EMBEDDED_VERSION} --hash=sha256:{_WHEELS[platform.machine()]}\n",
        )
        requirements.flush()
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        command += ["--no-deps", "--only-binary=:all:", "--no-compile", "--no-warn-conflicts"]
        command += ["--target", str(directory), "--require-hashes", "-r", requirements.name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")) or done.stderr[-2000:]
        raise TandemError(
            "environment",
            f"could not install the embedded Triton server (nvidia-pytriton {EMBEDDED_VERSION}); pip says:\n{reason}",
        )


def _place_stub(site: Path) -> None:
    """Put the stub of this Python where the backend looks for it."""
    server = site / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / python_minor() / _STUB
    if not stub.is_file():
        raise TandemError(
            "environment", f"nvidia-pytriton {EMBEDDED_VERSION} carries no stub for Python {python_minor()}"
        )
    shutil.copy2(stub, server / "backends" / "python" / _STUB)
    for program in (server / "bin" / "tritonserver", server / "backends" / "python" / _STUB):
        program.chmod(0o755)


def main() -> int:
    """Install unless this machine brings a server; a plain sentence and exit code 1 when that is not possible."""
    target = embedded_dir()
    if brings_server():
        return 0
    if not target.is_dir():
        print(f"Installing the embedded Triton server into {os.path.relpath(target)} (55 MB) …", flush=True)
    try:
        install()
    except TandemError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was installed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
