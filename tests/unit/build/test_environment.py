"""The set-up of a checkout: which Python it takes, and what it says meanwhile. ``make`` itself runs the rest."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``build/environment.py``, for a checkout of its own."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "build", checkout / "build", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "python_backends", checkout / "python_backends", symlinks=True)
    (checkout / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("environment", checkout / "build" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def setup(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / "build" / "setup"), "dev"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_python_that_does_not_fit_is_named(python: str) -> None:
    done = setup(PYTHON=python)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: PYTHON={python} is no Python 3.10, 3.11 or 3.12")


def test_shims_that_lead_nowhere_do_not_count(tmp_path: Path) -> None:
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "build").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / "build" / "setup", checkout / "build")
    for tool in ("dirname", "env", "sh"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    for shim in ("python3.12", "python3.11", "python3"):
        (tools / shim).write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
        (tools / shim).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(checkout / "build" / "setup")],
        env={"PATH": str(tools), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "error: found no Python 3.10, 3.11 or 3.12" in done.stderr
    assert "apt install python3-venv libpython3.11" in done.stderr


def test_this_python_is_complete(environment: ModuleType) -> None:
    assert environment.check() == []


def test_every_missing_thing_is_said(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise environment.TandemError("environment", "no libpython: apt install it")

    monkeypatch.setattr(environment, "find_libpython", missing)
    monkeypatch.setattr(environment, "brings_server", lambda: False)
    assert environment.check() == ["no libpython: apt install it"]
    monkeypatch.setattr(environment, "brings_server", lambda: True)
    assert environment.check() == []


def test_complete_checkout_is_left_alone_and_a_changed_one_is_not(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(environment, "_is_this_python", lambda: True)
    monkeypatch.setattr(environment, "_has_pip", lambda: True)
    monkeypatch.setattr(environment, "_pip_install", lambda what, _: installed.append(what))
    environment.VENV.mkdir()
    environment.install([])
    environment.install([])
    environment.install(["dev"])
    environment.install([])
    assert installed == [".", ".[dev]"]
    (environment.ROOT / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    environment.install([])
    assert installed == [".", ".[dev]", ".[dev]"], "extras that were there must stay"


def test_interrupted_install_is_taken_up_again(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    installed: list[str] = []
    monkeypatch.setattr(environment, "_is_this_python", lambda: True)
    monkeypatch.setattr(environment, "_has_pip", lambda: True)
    environment.VENV.mkdir()
    monkeypatch.setattr(environment, "_pip_install", interrupted)
    assert environment.main("install", "dev") == 130
    monkeypatch.setattr(environment, "_pip_install", lambda what, _: installed.append(what))
    assert environment.main("install", "dev") == 0
    assert installed == [".[dev]"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)\n",
            None,
        ),
        (
            "Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)\n",
            "downloading torch 2.13.0 (526.6 MB)",
        ),
        (
            "Downloading https://host/x/nixl_cu13-1.5.1-cp311-none.whl (58.8 MB)\n",
            "downloading nixl_cu13 1.5.1 (58.8 MB)",
        ),
        ("Downloading idna-3.20-py3-none-any.whl (70 kB)\n", None),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages (takes a minute)"),
        ("Requirement already satisfied: a in ./.venv\n", None),
    ],
)
def test_progress_without_noise(environment: ModuleType, line: str, said: str | None) -> None:
    assert environment._progress(line) == said
