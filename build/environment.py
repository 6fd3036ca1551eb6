"""Set up ``.venv`` for this checkout: ``python build/environment.py install EXTRA,EXTRA`` (see ``build/setup``).

Needs nothing but the standard library. Done once for each state of ``pyproject.toml``: what is installed is noted
in ``.venv/tandem.json`` at the very end, so that an interrupted set-up is simply taken up again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
NOTE = VENV / "tandem.json"
LOCK = ROOT / ".tandem" / "setup.lock"
LOG = ROOT / ".tandem" / "logs" / "setup.log"

sys.path.insert(0, str(ROOT / "python_backends"))

from tandem.errors import TandemError  # noqa: E402
from tandem.triton.libpython import find_libpython, python_minor  # noqa: E402
from tandem.triton.runtime import brings_server  # noqa: E402

_DOWNLOADING = re.compile(r"^\s*Downloading (?:\S*/)?([A-Za-z0-9_.]+?)-(\d[^-]*)-\S+ \((.*)\)$")
_INSTALLING = re.compile(r"^Installing collected packages: (.*)$")


def check() -> list[str]:
    """What this Python lacks to carry Tandem; empty when it is complete."""
    lacks = []
    if importlib.util.find_spec("ensurepip") is None and sys.prefix == sys.base_prefix:
        lacks.append(
            f"Python {python_minor()} at {sys.base_prefix} cannot make virtual environments; "
            f"Debian or Ubuntu: apt install python{python_minor()}-venv"
        )
    if not brings_server():
        try:
            find_libpython()
        except TandemError as error:
            lacks.append(error.message)
    return lacks


def install(extras: list[str]) -> None:
    """Bring ``.venv`` to the state that ``pyproject.toml`` and ``extras`` ask for."""
    with _alone() as lock:
        _install(extras, lock)


def _install(extras: list[str], lock: IO[str]) -> None:
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    noted_digest, noted_extras = _read_note()
    if noted_digest == digest and noted_extras.issuperset(extras) and _is_this_python():
        return
    extras = sorted({*extras, *noted_extras})
    if not (_is_this_python() and _has_pip()):
        _make_venv()
    NOTE.unlink(missing_ok=True)
    _pip_install(f".[{','.join(extras)}]" if extras else ".", lock)
    partial = NOTE.with_suffix(".partial")
    partial.write_text(json.dumps({"pyproject": digest, "extras": extras}))
    partial.rename(NOTE)


@contextmanager
def _alone() -> Iterator[IO[str]]:
    """One set-up at a time: the lock, which pip is given too, lest it be alone in going on after this process."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up of this checkout …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _read_note() -> tuple[str, set[str]]:
    """For which ``pyproject.toml`` and extras ``.venv`` is complete; empty when it is not."""
    try:
        note = json.loads(NOTE.read_text())
    except (OSError, ValueError):
        return "", set()
    return str(note["pyproject"]), {str(extra) for extra in note["extras"]}


def _is_this_python() -> bool:
    """Whether ``.venv`` works and is of the same minor version as this Python."""
    if Path(sys.prefix) == VENV:
        return True
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    try:
        done = subprocess.run([str(VENV / "bin" / "python"), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == python_minor()


def _has_pip() -> bool:
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _make_venv() -> None:
    """A new ``.venv``; whatever was there is removed."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    print(f"Setting up .venv with Python {sys.version.split()[0]} ({base}) …", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        sys.exit(f"error: could not make .venv:\n{made.stdout}{made.stderr}")


def _pip_install(what: str, lock: IO[str]) -> None:
    """``pip install -e``, its noise in a log, its progress on the terminal."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    command += ["--progress-bar", "off", "-e", what]
    started = time.monotonic()
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno()],
        ) as pip,
    ):
        assert pip.stdout is not None
        print(f"Installing {what} (details: {LOG.relative_to(ROOT)})", flush=True)
        for line in pip.stdout:
            log.write(line)
            if said := _progress(line):
                print(f"  {said}", flush=True)
    if pip.returncode != 0:
        lines = LOG.read_text().splitlines()
        errors = [line for line in lines if line.startswith("ERROR") and "Ignored" not in line] or lines[-15:]
        errors = [re.sub(r" \(from versions: .*\)", "", line) for line in errors[:15]]
        sys.exit("\n".join(["error: pip could not install the dependencies:", *errors, f"The whole log: {LOG}"]))
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def _progress(line: str) -> str | None:
    """What a line of pip's says to somebody who waits; None for noise."""
    if found := _DOWNLOADING.match(line):
        name, version, size = found.groups()
        return f"downloading {name} {version} ({size})" if size.endswith(("MB", "GB")) else None
    if found := _INSTALLING.match(line):
        return f"unpacking {len(found.group(1).split(', '))} packages (takes a minute)"
    return None


def main(command: str, extras: str = "") -> int:
    """Run ``check`` or ``install``; returns the exit code."""
    try:
        if lacks := check():
            print(*(f"error: {lack}" for lack in lacks), sep="\n", file=sys.stderr)
            return 1
        if command == "install":
            install([extra for extra in extras.split(",") if extra])
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main(*sys.argv[1:]))
