"""What a fresh Debian machine lacks for the test: Docker, a base image that is not pulled, and Tandem's image."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "tandem-base:bookworm"
IMAGE = "tandem:compose-test"

_RELEASE, _MIRROR = "bookworm", "http://deb.debian.org"
_START_S = 60.0
_SOURCES = f"""deb {_MIRROR}/debian {_RELEASE} main
deb {_MIRROR}/debian {_RELEASE}-updates main
deb {_MIRROR}/debian-security {_RELEASE}-security main
"""
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
"""Of this machine's own network; the build has to trust them too."""


def run(*command: str, timeout: float = 600.0, **options: object) -> str:
    """A command's output. Raises RuntimeError with what it said, where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)}: not done after {timeout:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return str(done.stdout)


def succeeds(*command: str, timeout: float = 60.0) -> bool:
    """Whether a command does."""
    try:
        run(*command, timeout=timeout)
    except (RuntimeError, OSError):
        return False
    return True


@contextlib.contextmanager
def docker() -> Iterator[None]:
    """Docker, installed if there is none, and its daemon, which ends in the end where it was started here."""
    packages = [
        p for p, program in (("docker.io", "dockerd"), ("docker-compose", compose_program())) if not _has(program)
    ]
    if packages:
        _install(*packages)
    if succeeds("docker", "info"):
        yield
        return
    with tempfile.TemporaryFile() as log:
        daemon = subprocess.Popen(["dockerd"], stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + _START_S
            while not succeeds("docker", "info"):
                if daemon.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"dockerd does not start: {log.read().decode()[-2000:]}")
                time.sleep(0.5)
            yield
        finally:
            daemon.terminate()
            daemon.wait(_START_S)


def compose_program() -> str | None:
    """``docker-compose`` where there is one; None where Docker has Compose 2 as a plugin."""
    return None if succeeds("docker", "compose", "version") else "docker-compose"


def build_image() -> None:
    """Tandem's image as it is now. Quick where little has changed."""
    if not succeeds("docker", "image", "inspect", BASE):
        _make_base()
    with _pip_sources() as sources:
        arguments = [f"--build-arg={name}={value}" for name, value in {"BASE": BASE, **sources}.items()]
        file = str(ROOT / "build/docker/cpu.Dockerfile")
        command = ["docker", "build", "--force-rm", "--network", "host", "-f", file, "-t", IMAGE, *arguments, str(ROOT)]
        run(*command, timeout=1200, env={**os.environ, "DOCKER_BUILDKIT": "0"})


def _has(program: str | None) -> bool:
    return program is None or shutil.which(program) is not None


def _install(*packages: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", env=environment)
    run("apt-get", "install", "--yes", "--no-install-recommends", *packages, env=environment)


def _make_base() -> None:
    """A minimal Debian, from its packages."""
    if not _has("debootstrap"):
        _install("debootstrap")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "root")
        run("debootstrap", "--variant=minbase", _RELEASE, str(place), f"{_MIRROR}/debian", timeout=900)
        (place / "etc/apt/sources.list").write_text(_SOURCES)
        shutil.rmtree(place / "var/cache/apt/archives")
        trusted = place / _CERTIFICATES.relative_to("/")
        trusted.mkdir(parents=True, exist_ok=True)
        for certificate in _CERTIFICATES.glob("*.crt"):
            shutil.copy(certificate, trusted)
        archive = Path(directory, "root.tar")
        run("tar", "-C", str(place), "-cf", str(archive), ".")
        run("docker", "import", "--change", 'CMD ["bash"]', str(archive), BASE)


# ---------------------------------------------------------------- where pip finds packages


@contextlib.contextmanager
def _pip_sources() -> Iterator[dict[str, str]]:
    """pip's settings here as variables for the build; directories of this machine are served to it meanwhile."""
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    given: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition("=")
        given[name.rpartition(".")[2]] = value.strip("'\"")
    roots: list[Path] = []
    server = _listen(functools.partial(_Directories, roots))
    wanted = {}
    for name in ("index-url", "extra-index-url", "find-links"):
        if name in given:
            words = [_as_url(word, roots, server.server_port) for word in given[name].split()]
            wanted[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    if any(_CERTIFICATES.glob("*.crt")):
        wanted["PIP_CERT"] = "/etc/ssl/certs/ca-certificates.crt"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield wanted
    finally:
        server.shutdown()
        server.server_close()


def _listen(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    """At the same port each time, if it is free: Docker builds anew what has other arguments."""
    usual = 10_000 + zlib.crc32(str(ROOT).encode()) % 10_000  # below those that tests and servers choose from
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", usual), handler)
    except OSError:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


def _as_url(word: str, roots: list[Path], port: int) -> str:
    path = Path(urllib.parse.urlparse(word).path if word.startswith("file:") else word)
    if not path.is_dir():
        return word
    roots.append(path if path.name != "simple" else path.parent)  # an index names files beside it
    return f"http://127.0.0.1:{port}{path}/"


class _Directories(http.server.SimpleHTTPRequestHandler):
    """Serves what lies in some directories, under their whole paths, and nothing else."""

    def __init__(self, roots: list[Path], *arguments: object) -> None:
        self._roots = roots
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        wanted = Path(os.path.normpath(urllib.parse.unquote(path.partition("?")[0])))
        allowed = any(wanted.is_relative_to(root) for root in self._roots)
        return str(wanted) + ("/" if path.endswith("/") else "") if allowed else "/nonexistent"

    def log_message(self, *_: object) -> None:
        pass
