"""Prometheus' ``promtool``: the machine's, or the distribution's, fetched once and kept in ``.tandem``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tandem.triton.home import home_dir

TIMEOUT_S = 120.0


def find_promtool() -> str:
    """Path of promtool.

    Raises:
        RuntimeError: it is not here and cannot be fetched.
    """
    if found := shutil.which("promtool"):
        return found
    kept = home_dir() / "promtool"
    if not kept.is_file():
        _fetch(kept)
    return str(kept)


def _fetch(kept: Path) -> None:
    """Takes it out of the package of Debian or Ubuntu; needs no root, and installs nothing."""
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise RuntimeError(f"promtool and {', '.join(missing)} not found; install Prometheus, which brings promtool")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="promtool-") as name:
        place = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (place / part).mkdir(parents=True)
        own = [f"Dir::State::lists={place}/lists", f"Dir::Cache={place}/cache", "APT::Sandbox::User="]
        apt = ["apt-get", *(argument for setting in own for argument in ("-o", setting))]
        _run([*apt, "update"], place)
        _run([*apt, "download", "prometheus"], place)
        (package,) = place.glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", package.name, "package"], place)
        (place / "package/usr/bin/promtool").replace(kept)


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(
            f"promtool is not here and cannot be fetched: {' '.join(command)}: {done.stderr.strip()}; "
            "install Prometheus, which brings promtool"
        )
